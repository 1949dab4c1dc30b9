"""Two commands never write in one folder, and a dead one keeps nobody out."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from devil_pipe.stages.common import alone as module
from devil_pipe.stages.common.alone import alone
from devil_pipe.store.errors import InputError

pytest.importorskip("fcntl", reason="there is no such lock on Windows")

HOLD = """
import sys, time
from pathlib import Path
from devil_pipe.stages.common.alone import alone
with alone(Path(sys.argv[1]), "devil-pipe train it"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_command_is_refused_until_the_first_is_gone_however_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WAIT", 0)
    folder = tmp_path / "new/run"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="new/run: another `devil-pipe train it` is at work here"):
            alone(folder, "devil-pipe train it").__enter__()
        with alone(tmp_path / "elsewhere", "devil-pipe train it"):
            pass
        other.send_signal(signal.SIGKILL)
        other.wait()
        for _ in range(2):
            with alone(folder, "devil-pipe train it"):
                assert list(folder.iterdir()) == []  # nothing that could be left over


def test_a_folder_that_stays_empty_goes_again(tmp_path: Path) -> None:
    with pytest.raises(KeyError), alone(tmp_path / "stores/new", "devil-pipe extract new"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    with alone(tmp_path / "stores/new", "devil-pipe extract new"):
        (tmp_path / "stores/new/manifest.json").touch()
    assert (tmp_path / "stores/new/manifest.json").exists()
