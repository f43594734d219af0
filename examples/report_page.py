"""A report as one self-contained HTML page: numbers, transcripts to compare and to hear, pictures, tables, commands.

    page = Page("What it learnt", "One sentence of what this is.")
    page.numbers([("Word error rate", "12.3 %")])
    page.utterances("Transcripts", [("what was said", "what was heard", Path("a.ogg"))])
    page.write(Path("report.html"))

Sound and pictures are in the page itself, so that it can be sent and opened anywhere. It needs neither NeMo nor a
network.
"""

import base64
import io
import json
import mimetypes
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from kaldialign import align

from nemo_comat.output import written_beside

TEMPLATE = "report_page.html.jinja"
GAP = "<gap>"
# not known to every system's table of types, or known by a name that browsers do not
SOUNDS = {".flac": "audio/flac", ".ogg": "audio/ogg", ".opus": "audio/ogg", ".wav": "audio/wav"}


def compared(reference, transcript):
    """Words of both with what differs marked.

    Args:
        reference, transcript: str.
    Returns:
        (said, heard): lists of (word, True where the other has it too, in its place).
    """
    pairs = align(reference.split(), transcript.split(), GAP)
    said = [(ref, ref == hyp) for ref, hyp in pairs if ref != GAP]
    return said, [(hyp, ref == hyp) for ref, hyp in pairs if hyp != GAP]


def some(rows, number=5):
    """As many of the rows, spread over all of them; all where there are fewer."""
    rows = list(rows)
    return [rows[k * len(rows) // number] for k in range(number)] if len(rows) > number else rows


class Sound(NamedTuple):
    """What a manifest's row names: a file, or several that are its channels, from offset on for duration seconds.

    Both may be None: from the start, and to the end.
    """

    files: list
    offset: float | None
    duration: float | None


def manifest_audio(file):
    """A Sound for each row of a manifest, relative paths taken from the manifest's folder.

    Args:
        file: path of a manifest with a JSON object a line.
    """
    # not splitlines, which parts a line at signs such as U+2028 too
    rows = map(json.loads, filter(str.strip, file.read_text(encoding="utf-8").split("\n")))
    return [sound_of(row, file.parent) for row in rows]


def sound_of(row, folder):
    """The Sound of a manifest's row."""
    names = row["audio_filepath"]
    files = [folder / name for name in ([names] if isinstance(names, str) else names)]
    return Sound(files, row.get("offset"), row.get("duration"))


def data_uri(content, kind):
    """Bytes as an address that holds them.

    Args:
        content: bytes. kind: MIME type.
    """
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def file_uri(file):
    """A sound or a picture as an address that holds it.

    Args:
        file: path.
    Raises:
        OSError: it cannot be read.
    """
    kind = SOUNDS.get(Path(file).suffix.lower()) or mimetypes.guess_type(file)[0] or "application/octet-stream"
    return data_uri(Path(file).read_bytes(), kind)


def sound_uri(sound):
    """A Sound as an address that holds it: its file as it is, or, where it is less or more than one file, a WAV.

    Args:
        sound: Sound.
    Raises:
        OSError, RuntimeError: a file cannot be read.
    """
    if len(sound.files) == 1 and not sound.offset and not ends_before(sound):
        return file_uri(sound.files[0])
    channels = []
    for name in sound.files:
        with soundfile.SoundFile(name) as file:
            file.seek(int((sound.offset or 0) * file.samplerate))
            frames = -1 if not sound.duration else round(sound.duration * file.samplerate)
            channels.append(file.read(frames, always_2d=True).mean(1))
            rate = file.samplerate
    shortest = min(map(len, channels))
    content = io.BytesIO()
    mean = np.mean([channel[:shortest] for channel in channels], axis=0)
    soundfile.write(content, mean, rate, format="WAV", subtype="PCM_16")
    return data_uri(content.getvalue(), SOUNDS[".wav"])


def ends_before(sound):
    """Whether a Sound ends before its file does, by more than rounding; no where the file's length cannot be told."""
    try:
        return sound.duration is not None and sound.duration < soundfile.info(sound.files[0]).duration - 0.01
    except RuntimeError:  # of what is no file, or of a kind that browsers alone read
        return False


def load_matplotlib():
    """The package that draws curves, and its class Figure.

    Raises:
        ImportError: it is missing.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Curves need matplotlib: pip install 'nemo_comat[demo]'") from error
    return matplotlib, Figure


def line_of(number):
    """Colour and dashes of a chart's line, other ones for each of 40: matplotlib has ten colours."""
    return {"color": f"C{number}", "linestyle": ("-", "--", ":", "-.")[number // 10 % 4]}


def chart(curves, *, xlabel):
    """Line charts side by side, as an address that holds an SVG.

    Args:
        curves: {title: {label: [(x, y), ...]}}; a chart for each title. Empty lines and charts are left out.
        xlabel: str.
    Returns:
        str, or None where nothing is to be drawn.
    """
    drawn = {title: {k: line for k, line in lines.items() if line} for title, lines in curves.items()}
    drawn = {title: lines for title, lines in drawn.items() if lines}
    if not drawn:
        return None
    matplotlib, Figure = load_matplotlib()
    figure = Figure(figsize=(4.6 * max(len(drawn), 2), 3.4), layout="constrained")
    for axes, (title, lines) in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn.items()):
        for number, (label, line) in enumerate(lines.items()):
            marker = "o" if len(line) < 20 else None
            axes.plot(*zip(*line), label=label, marker=marker, markersize=3, **line_of(number))
        axes.set(title=title, xlabel=xlabel)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        if len(lines) > 1:
            axes.legend()
    content = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(content, format="svg", metadata={"Date": None})
    return data_uri(content.getvalue(), "image/svg+xml")


class Page:
    """A page that is filled from top to bottom.

    Args:
        title: str. lead: a sentence or two below it.
    """

    def __init__(self, title, lead=""):
        self.title, self.lead, self.parts = title, lead, []

    def _add(self, kind, heading="", notes=(), **content):
        self.parts.append({"kind": kind, "heading": heading, "notes": list(notes), **content})

    def numbers(self, numbers):
        """Adds what is seen first.

        Args:
            numbers: list of (name, value), str.
        """
        self._add("numbers", numbers=numbers)

    def utterances(self, heading, rows):
        """Adds transcripts beside what was said, with the words that differ marked, and the sound.

        Args:
            heading: str. rows: list of (reference, transcript, audio: its path, a Sound or None).
        """
        shown = []
        for reference, transcript, audio in rows:
            said, heard = compared(reference, transcript)
            address = sound_uri if isinstance(audio, Sound) else file_uri
            shown.append({"said": said, "heard": heard, "audio": address(audio) if audio is not None else None})
        note = "Words that were not recognised are crossed out; words that stand in their place are underlined."
        self._add("utterances", heading, [note], utterances=shown)

    def picture(self, heading, source, alt, notes=(), *, wide=False):
        """Adds a picture.

        Args:
            heading: str. source: address, as of `file_uri` or `chart`. alt: what it shows, for those who do not see it.
            notes: sentences below. wide: True where it is to be scrolled, rather than shrunk, on a narrow screen.
        """
        self._add("picture", heading, notes, source=source, alt=alt, wide=wide)

    def table(self, heading, head, rows, notes=()):
        """Adds a table.

        Args:
            heading: str. head: list of str. rows: list of lists. notes: sentences below.
        """
        self._add("table", heading, notes, head=head, rows=rows)

    def sentences(self, heading, sentences):
        """Adds sentences, a paragraph each.

        Args:
            heading: str. sentences: list of str.
        """
        self._add("sentences", heading, sentences=sentences)

    def commands(self, heading, commands):
        """Adds what can be done next.

        Args:
            heading: str. commands: list of (sentence, command).
        """
        self._add("commands", heading, commands=commands)

    def html(self):
        """The page as text."""
        loader = FileSystemLoader(Path(__file__).parent)
        options = {"autoescape": True, "undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
        return Environment(loader=loader, **options).get_template(TEMPLATE).render(page=self)

    def write(self, file):
        """Writes the page, whole or not at all.

        Args:
            file: path; what is there is replaced.
        Raises:
            OSError: as the file system says.
        """
        with written_beside(file) as part:
            part.write_text(self.html(), encoding="utf-8")
