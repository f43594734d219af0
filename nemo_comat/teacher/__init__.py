"""The teacher: a frozen pre-trained language model, and its answers on disk."""

from nemo_comat.teacher.cache import CachedTeacher, Missing, build_teacher
from nemo_comat.teacher.cache_files import CacheError, TeacherCache
from nemo_comat.teacher.cache_writer import write_cache, write_index
from nemo_comat.teacher.device import upload
from nemo_comat.teacher.files import find_model
from nemo_comat.teacher.language_model import TABLE, Dtype
from nemo_comat.teacher.output import TeacherError, TeacherOutput
from nemo_comat.teacher.pending import Pending
from nemo_comat.teacher.teacher import Teacher, Units
from nemo_comat.teacher.texts import SENTENCEPIECE_UNKNOWN

__all__ = [
    "SENTENCEPIECE_UNKNOWN",
    "TABLE",
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
