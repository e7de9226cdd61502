"""The official caption figure: seven COCO metrics, two of whose parts are Java programs of pycocoevalcap.

The programs are started here and not by pycocoevalcap, which writes into its own folder and leaves a process
behind when something goes wrong. What they are asked is the same.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import IO

from fcit.data.records import TestRecord
from fcit.errors import RunError
from fcit.evaluation.captions import Captions, cider, references
from fcit.evaluation.scorers import Result, corpus

#: The seven, in the order of the official printout.
METRICS = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr")
_PATIENCE = 3600.0  # seconds for the tokenizer; it does some 50,000 captions a second
_ENDS = 10.0  # seconds for a program to go when its input is closed
#: Accents are read as what they are whatever the locale; Java before 18 would ask the locale.
_UTF8 = "-Dfile.encoding=UTF-8"


def java() -> str:
    """The Java program.

    Raises:
        RunError: there is none, with the way to get one.
    """
    program = shutil.which("java")
    if program is None:
        raise RunError(
            "scorer caption7: METEOR and the PTB tokenizer are Java programs and there is no `java` on PATH; install "
            "one (Debian, Ubuntu: `apt-get install default-jre-headless`), or choose `scorer: caption`, our own "
            "definition, which needs none"
        )
    return program


def _failed(program: str, said: str) -> RunError:
    last = next((line for line in reversed(said.splitlines()) if line.strip()), "it said nothing")
    return RunError(
        f"scorer caption7: {program} failed ({last.strip()[:200]}); `java -version` tells which Java this is"
    )


def tokenize(captions: Captions) -> Captions:
    """Lower-cased tokens of the Stanford PTB tokenizer joined by blanks, without pycocoevalcap's punctuation.

    Quirk of the official tokenizer: with lower-casing, brackets become "-lrb-" and are not recognised as punctuation.
    Line breaks of any kind become blanks first; the official wrapper replaces "\\n" alone, and the others
    would shift all captions after them.

    Raises:
        RunError: no Java, or it failed.
    """
    from pycocoevalcap.tokenizer import ptbtokenizer as ptb

    lines = [" ".join(text.encode(errors="replace").decode().split()) for group in captions.values() for text in group]
    with tempfile.TemporaryDirectory(prefix="fcit-ptb-") as folder:
        file = Path(folder) / "captions.txt"
        file.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        jar = str(Path(ptb.__file__).parent / ptb.STANFORD_CORENLP_3_4_1_JAR)
        command = [
            java(),
            _UTF8,
            "-cp",
            jar,
            "edu.stanford.nlp.process.PTBTokenizer",
            "-preserveLines",
            "-lowerCase",
            file.name,
        ]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, timeout=_PATIENCE, check=False)
        except subprocess.TimeoutExpired:
            raise _failed("the PTB tokenizer", f"no answer within {_PATIENCE:.0f} s") from None
    found = done.stdout.decode("utf-8", "replace").split("\n")[:-1]
    if done.returncode != 0 or len(found) != len(lines):
        said = done.stderr.decode("utf-8", "replace")
        raise _failed("the PTB tokenizer", f"{said}\n{len(found)} lines for {len(lines)} captions")
    kept = (" ".join(word for word in line.rstrip().split(" ") if word not in ptb.PUNCTUATIONS) for line in found)
    return {key: [next(kept) for _ in group] for key, group in captions.items()}


class _Meteor:
    """METEOR 1.5 as a process that answers line by line; see :func:`_meteor`."""

    def __init__(self, process: subprocess.Popen[str], errors: IO[str]) -> None:
        self._process, self._errors = process, errors

    def ask(self, line: str) -> str:
        """One line in, one line out."""
        self._say(line)
        return self.listen()

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._gone() from None

    def listen(self) -> str:
        """The next line it says."""
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        if not answer:
            raise self._gone()
        return answer.strip()

    def _gone(self) -> RunError:
        self._errors.seek(0)
        return _failed("METEOR", self._errors.read())


@contextmanager
def _meteor() -> Iterator[_Meteor]:
    """METEOR with pycocoevalcap's options, ended whatever happens in the body."""
    from pycocoevalcap.meteor import meteor as its

    command = [java(), _UTF8, "-Xmx2G", "-jar", its.METEOR_JAR, "-", "-", "-stdio", "-l", "en", "-norm"]
    # Its errors go to a file: a pipe that nobody reads would stop it when it is full.
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors,
        subprocess.Popen(
            command,
            cwd=Path(its.__file__).parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
        ) as process,
    ):
        try:
            yield _Meteor(process, errors)
            with suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=_ENDS)
        finally:
            process.kill()


def meteor(wanted: Captions, said: Captions) -> float:
    """METEOR of the corpus, 0..1, from tokenized captions.

    Raises:
        RunError: no Java, or it failed.
    """
    with _meteor() as program:
        statistics = []
        for key, captions in wanted.items():
            # As pycocoevalcap writes it; the bars separate the parts of a line.
            answer = said[key][0].replace("|||", "").replace("  ", " ")
            statistics.append(program.ask(" ||| ".join(["SCORE", *captions, answer])))
        program.ask(" ||| ".join(["EVAL", *statistics]))  # the first record's own score; the corpus' comes last
        for _ in range(len(statistics) - 1):
            program.listen()
        return float(program.listen())


def seven(texts: Sequence[str], records: Sequence[TestRecord]) -> dict[str, float]:
    """The seven metrics of :data:`METRICS`, each times 100, over tokenized captions.

    Raises:
        RunError: no Java, or it failed.
    """
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.rouge.rouge import Rouge

    count = len(records)
    everything: Captions = {i: list(references(record)) for i, record in enumerate(records)}
    # One call for both sides: starting Java costs more than a thousand captions.
    everything |= {count + i: [text.strip()] for i, text in enumerate(texts)}
    tokens = tokenize(everything)
    wanted, said = {i: tokens[i] for i in range(count)}, {i: tokens[count + i] for i in range(count)}
    bleu = Bleu(4).compute_score(wanted, said, verbose=0)[0]
    rouge = Rouge().compute_score(wanted, said)[0]
    values = chain(bleu, [meteor(wanted, said), rouge, cider(wanted, said)[0]])
    return {name: 100.0 * float(value) for name, value in zip(METRICS, values, strict=True)}


@corpus(by_line=True, by_blanks=True, slow=True)
def caption7(texts: Sequence[str], records: Sequence[TestRecord]) -> Result:
    """Mean of BLEU-1..4, METEOR, ROUGE-L and CIDEr, each times 100 (official rule of Flickr30k and VizWiz; Java).

    Quirk: CIDEr reaches 10, so the mean may exceed 100.

    Raises:
        RunError: no Java, or it failed. ValueError: not as many texts as records.
    """
    if len(texts) != len(records):
        raise ValueError(f"{len(texts)} texts for {len(records)} records")
    found = seven(texts, records)
    return Result(sum(found.values()) / len(found))
