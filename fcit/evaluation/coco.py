"""The official caption figure: seven COCO metrics, two of whose parts are Java programs of pycocoevalcap.

The programs are started here and not by pycocoevalcap, which writes into its own folder and leaves a process
behind when something goes wrong. Their input is the same.
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
from fcit.evaluation.scorers import Result, corpus, demands

#: The seven, in the order of the official printout.
METRICS = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr")
_PATIENCE = 3600.0  # seconds for the tokenizer; it does some 50,000 captions a second
_ENDS = 10.0  # seconds for a program to go when its input is closed
#: UTF-8 whatever the locale is; Java before 18 would take the encoding of the locale.
_UTF8 = "-Dfile.encoding=UTF-8"


def java() -> str:
    """The Java program.

    Raises:
        RunError: it is not installed, with how to install it.
    """
    program = shutil.which("java")
    if program is None:
        raise RunError(
            "scorer caption7: METEOR and the PTB tokenizer are Java programs and there is no `java` on PATH; install "
            "one (Debian, Ubuntu: `apt-get install default-jre-headless`), or choose `scorer: caption`, our own "
            "definition, which needs none"
        )
    return program


def _failed(program: str, output: str) -> RunError:
    last = next((line for line in reversed(output.splitlines()) if line.strip()), "it said nothing")
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
    tokenized = done.stdout.decode("utf-8", "replace").split("\n")[:-1]
    if done.returncode != 0 or len(tokenized) != len(lines):
        errors = done.stderr.decode("utf-8", "replace")
        raise _failed("the PTB tokenizer", f"{errors}\n{len(tokenized)} lines for {len(lines)} captions")
    kept = (" ".join(word for word in line.rstrip().split(" ") if word not in ptb.PUNCTUATIONS) for line in tokenized)
    return {key: [next(kept) for _ in group] for key, group in captions.items()}


class _Meteor:
    """METEOR 1.5 as a process that answers line by line; see :func:`_meteor`."""

    def __init__(self, process: subprocess.Popen[str], errors: IO[str]) -> None:
        self._process, self._errors = process, errors

    def ask(self, line: str) -> str:
        """One line in, one line out."""
        self._write(line)
        return self.read()

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None

    def read(self) -> str:
        """The next line of its output."""
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        if not answer:
            raise self._ended()
        return answer.strip()

    def _ended(self) -> RunError:
        self._errors.seek(0)
        return _failed("METEOR", self._errors.read())


@contextmanager
def _meteor() -> Iterator[_Meteor]:
    """METEOR with pycocoevalcap's options, ended whatever happens in the body."""
    from pycocoevalcap.meteor import meteor as package

    command = [java(), _UTF8, "-Xmx2G", "-jar", package.METEOR_JAR, "-", "-", "-stdio", "-l", "en", "-norm"]
    # Its errors go to a file: a pipe that is not read would stop it when it is full.
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors,
        subprocess.Popen(
            command,
            cwd=Path(package.__file__).parent,
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


def meteor(truths: Captions, predicted: Captions) -> float:
    """METEOR of the corpus, 0..1, from tokenized captions.

    Raises:
        RunError: no Java, or it failed.
    """
    with _meteor() as program:
        statistics = []
        for key, captions in truths.items():
            # As pycocoevalcap writes it; the bars separate the parts of a line.
            answer = predicted[key][0].replace("|||", "").replace("  ", " ")
            statistics.append(program.ask(" ||| ".join(["SCORE", *captions, answer])))
        program.ask(" ||| ".join(["EVAL", *statistics]))  # the first record's own score; the corpus' comes last
        for _ in range(len(statistics) - 1):
            program.read()
        return float(program.read())


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
    truths, predicted = {i: tokens[i] for i in range(count)}, {i: tokens[count + i] for i in range(count)}
    bleu = Bleu(4).compute_score(truths, predicted, verbose=0)[0]
    rouge = Rouge().compute_score(truths, predicted)[0]
    values = chain(bleu, [meteor(truths, predicted), rouge, cider(truths, predicted)[0]])
    return {name: 100.0 * float(value) for name, value in zip(METRICS, values, strict=True)}


@demands("sentence")
@corpus(by_line=True, by_blanks=True, slow=True)
def caption7(texts: Sequence[str], records: Sequence[TestRecord]) -> Result:
    """Mean of BLEU-1..4, METEOR, ROUGE-L and CIDEr, each times 100 (official rule of Flickr30k and VizWiz; Java).

    Quirk: CIDEr reaches 10, so the mean may exceed 100.

    Raises:
        RunError: no Java, or it failed. ValueError: not as many texts as records.
    """
    if len(texts) != len(records):
        raise ValueError(f"{len(texts)} texts for {len(records)} records")
    scores = seven(texts, records)
    return Result(sum(scores.values()) / len(scores))
