"""The teacher: a frozen pre-trained language model, and its answers on disk."""

from nemo_comat.teacher.cache import (
    MISSING,
    CachedTeacher,
    CacheError,
    Missing,
    TeacherCache,
    build_teacher,
    write_cache,
    write_index,
)
from nemo_comat.teacher.device import upload
from nemo_comat.teacher.files import find_model
from nemo_comat.teacher.language_model import (
    SENTENCEPIECE_UNKNOWN,
    TABLE,
    UNITS,
    Dtype,
    Teacher,
    TeacherError,
    TeacherOutput,
    Units,
)
from nemo_comat.teacher.pending import Pending

__all__ = [
    "MISSING",
    "SENTENCEPIECE_UNKNOWN",
    "TABLE",
    "UNITS",
    "CacheError",
    "CachedTeacher",
    "Dtype",
    "Missing",
    "Pending",
    "Teacher",
    "TeacherCache",
    "TeacherError",
    "TeacherOutput",
    "Units",
    "build_teacher",
    "find_model",
    "upload",
    "write_cache",
    "write_index",
]
