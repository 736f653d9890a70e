"""Tensors that the ranks of a node compute once: who computes what, what is read, and what is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from distune.backends.node_folder import remove_unused, shared_folder
from distune.backends.onnxruntime.prefix import SharedPrefix
from distune.backends.onnxruntime.prefix_store import PrefixStore, batch_name
from tests.backends.onnx_models import backend_of, default_config
from tests.backends.test_onnx_prefix import batches, one_at_a_time, residual_network

LIMIT = 1 << 20
TENSORS = {"a": np.arange(12, dtype=np.int8).reshape(3, 4), "b": np.ones((2,), np.uint8)}


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_a_batch_is_for_one_rank_to_compute_and_for_all_to_read() -> None:
    mine, other = PrefixStore("x", LIMIT), PrefixStore("x", LIMIT)
    assert mine.claim("0")
    assert not other.claim("0")
    assert not other.has("0"), "begun, but not there yet"
    assert mine.write("0", TENSORS)
    assert other.has("0")
    assert [other.read("0", at).tolist() for at in range(2)] == [array.tolist() for array in TENSORS.values()]
    mine.close()
    assert other.has("0")
    other.close()
    assert not shared_folder().exists(), "the last one clears up"


def test_the_ranks_of_a_node_share_one_limit() -> None:
    mine, other = PrefixStore("x", 400), PrefixStore("x", 400)
    assert mine.write("0", {"a": np.zeros(150, np.uint8)})
    assert not other.write("1", {"a": np.zeros(150, np.uint8)})
    assert not other.has("1")


def test_one_rank_chooses_for_all() -> None:
    chosen = []

    def choose(store: PrefixStore, name: str) -> None:
        chosen.append(store.agree(lambda: [name]))

    stores = [PrefixStore("x", LIMIT) for _ in range(4)]
    threads = [threading.Thread(target=choose, args=(store, str(at))) for at, store in enumerate(stores)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(chosen) == 4
    assert len(set(chosen)) == 1


def test_what_a_killed_rank_leaves_is_removed_by_who_killed_it() -> None:
    code = (
        "import os, tempfile; tempfile.tempdir = os.environ['FOLDER']\n"
        "from distune.backends.onnxruntime.prefix_store import PrefixStore\n"
        "store = PrefixStore('x', 100); print('ready', flush=True); input()"
    )
    environment = {**os.environ, "FOLDER": str(tempfile.tempdir)}
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, env=environment)
    assert process.stdout is not None
    process.stdout.readline()
    remove_unused()
    assert list(shared_folder().iterdir()), "still in use"
    process.kill()
    process.communicate()
    remove_unused()
    assert not shared_folder().exists()


def test_what_a_killed_rank_has_begun_is_begun_anew_when_nobody_else_is_left() -> None:
    store = PrefixStore("x", LIMIT)
    store.claim("0")
    folder = store._folder
    store._let_go.detach()
    assert (folder / "0.begun").exists()
    for name in os.listdir("/proc/self/fd"):  # as the system does for a process that is killed
        with suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").startswith(str(folder)):
                os.close(int(name))
    assert PrefixStore("x", LIMIT).claim("0")


def test_many_batches_take_no_file_descriptors() -> None:
    store = PrefixStore("x", LIMIT)
    before = len(os.listdir("/proc/self/fd"))
    kept = []
    for number in range(50):
        store.write(f"{number}", TENSORS)
        kept.append(store.read(f"{number}", 0))
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("call", ["join", "agree", "has", "claim", "write", "read"])
def test_where_nothing_can_be_kept_models_run_as_a_whole_and_say_so(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    backend = backend_of(residual_network(3), batches(103, size=4))
    base, feeds = default_config(backend), batches(3)
    candidate = one_at_a_time(backend, base)[0]
    expected = [backend.load(candidate).predict(feed)[0].tobytes() for feed in feeds]
    if call == "join":
        monkeypatch.setattr("distune.backends.onnxruntime.prefix_store.join", full)
    else:
        monkeypatch.setattr(PrefixStore, call, full)
    backend.share(base, samples=48, memory_limit=1 << 24)
    loaded = backend.load(candidate)
    loaded.prepare(enumerate(feeds))
    assert [loaded.predict_batch(key, feed)[0].tobytes() for key, feed in enumerate(feeds)] == expected
    assert any("No space left on device" in warning for warning in loaded.warnings)
    backend.share(None)


@pytest.mark.parametrize("damage", ["empty", "cut off", "something else"])
def test_a_damaged_file_is_an_error_of_reading_and_the_model_runs_as_a_whole(damage: str) -> None:
    backend = backend_of(residual_network(3), batches(103, size=4))
    base, feeds = default_config(backend), batches(3)
    candidate = one_at_a_time(backend, base)[0]
    expected = [backend.load(candidate).predict(feed)[0].tobytes() for feed in feeds]
    backend.share(base, samples=48, memory_limit=1 << 24)
    loaded = backend.load(candidate)
    loaded.prepare(enumerate(feeds))
    files = list(shared_folder().glob("*/*/*.npy"))
    assert files
    for path in files:
        content = {"empty": b"", "cut off": path.read_bytes()[:-1], "something else": b"something else"}[damage]
        path.write_bytes(content)
    store = PrefixStore(files[0].parents[1].name, LIMIT)
    with pytest.raises(OSError, match="damaged"):
        store.read(files[0].parent.name, int(files[0].stem))
    store.close()
    assert [loaded.predict_batch(key, feed)[0].tobytes() for key, feed in enumerate(feeds)] == expected
    assert any("damaged" in warning for warning in loaded.warnings)
    backend.share(None)


def test_a_damaged_list_of_cuts_is_an_error_of_reading() -> None:
    store = PrefixStore("x", LIMIT)
    store.agree(lambda: ["a"])
    (store._folder / "cuts.json").write_text('["a')
    with pytest.raises(OSError, match="damaged"):
        store.agree(list)


def test_two_processes_that_write_at_once_do_not_disturb_each_other() -> None:
    code = (
        "import os, sys, tempfile; tempfile.tempdir = os.environ['FOLDER']\n"
        "import numpy as np\n"
        "from distune.backends.onnxruntime.prefix_store import PrefixStore\n"
        "store = PrefixStore('x', 40_000); print('ready', flush=True); input()\n"
        "mine = [n for n in range(200) if store.claim(str(n)) and store.write(str(n), {'a': np.full(200, n % 128)})]\n"
        "assert all((store.read(str(n), 0) == n % 128).all() for n in mine)\n"
        "print(store.size, len(mine), flush=True); input()"
    )
    environment = {**os.environ, "FOLDER": str(tempfile.tempdir)}
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", code]
    processes = [subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, text=True) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = [str(process.stdout.readline()).split() for process in processes if process.stdout is not None]
    assert max(int(size) for size, _ in said) <= 40_000
    assert sum(int(count) for _, count in said) > 10
    for process in processes:
        process.communicate("\n")
    assert not shared_folder().exists()


def test_the_limit_is_kept_to_the_byte_by_many_small_files_of_three_processes() -> None:
    """A file of a few bytes takes many more with its header."""
    code = (
        "import os, tempfile; tempfile.tempdir = os.environ['FOLDER']\n"
        "import numpy as np\n"
        "from distune.backends.onnxruntime.prefix_store import PrefixStore\n"
        "store = PrefixStore('x', 20_000); store.agree(list); print('ready', flush=True); input()\n"
        "wrote = [n for n in range(99) if store.write(f'{os.getpid()}-{n}', {'a': np.zeros(n), 'b': np.zeros(1)})]\n"
        "print(store.size, len(wrote), flush=True); input()"
    )
    environment = {**os.environ, "FOLDER": str(tempfile.tempdir)}
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", code]
    processes = [subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, text=True) for _ in range(3)]
    for answer in ("ready", "sizes"):
        said = [process.stdout.readline().split() for process in processes if process.stdout is not None]
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        if answer == "ready":
            assert said == [["ready"]] * 3
    sizes, counts = zip(*([int(number) for number in line] for line in said), strict=True)
    assert max(sizes) <= 20_000
    assert max(sizes) > 20_000 - 3 * (2 * 128 + 100 * 8), "it is used, too"
    assert sum(counts) > 30
    for process in processes:
        process.communicate()


def test_what_a_batch_costs_does_not_grow_with_those_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[object] = []
    monkeypatch.setattr("os.scandir", lambda path, real=os.scandir: looks.append(path) or real(path))
    store = PrefixStore("x", LIMIT)
    costs = []
    for number in range(30):
        looks.clear()
        store.write(str(number), TENSORS)
        costs.append(len(looks))
    assert len(set(costs)) == 1


def test_a_rank_that_is_killed_while_it_writes_has_counted_too_much_until_the_next_one_opens_the_store() -> None:
    code = (
        "import os, tempfile; tempfile.tempdir = os.environ['FOLDER']\n"
        "import numpy as np; from pathlib import Path\n"
        "from distune.backends.onnxruntime.prefix_store import PrefixStore\n"
        "Path.rename = lambda *given: os.kill(os.getpid(), 9)\n"
        "PrefixStore('x', 1000).write('killed', {'a': np.zeros(500, np.uint8)})"
    )
    first = PrefixStore("x", 1000)
    environment = {**os.environ, "FOLDER": str(tempfile.tempdir)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == -9
    assert first.size == 0
    assert not first.write("0", {"a": np.zeros(500, np.uint8)}), "what it has left takes room"
    second = PrefixStore("x", 1000)
    second.agree(list)
    assert first.write("0", {"a": np.zeros(500, np.uint8)})
    assert not second.write("1", {"a": np.zeros(500, np.uint8)})


def test_batches_are_told_apart_by_their_data() -> None:
    feed: dict[str, np.ndarray] = {"x": np.arange(6, dtype=np.float32), "mask": np.ones(2, np.int64)}
    assert batch_name(feed) == batch_name(dict(reversed(feed.items())))
    others = [{**feed, "x": feed["x"].reshape(2, 3)}, {**feed, "x": feed["x"] + 1}, {"x": feed["x"]}]
    assert len({batch_name(each) for each in (feed, *others)}) == 4


def test_two_ranks_fill_the_store_together_and_give_the_bits_of_the_whole_model() -> None:
    backend = backend_of(residual_network(3), batches(103, size=4))
    base, feeds = default_config(backend), batches(3, count=6)
    candidate = one_at_a_time(backend, base)[0]
    expected = [backend.load(candidate).predict(feed)[0].tobytes() for feed in feeds]
    ranks = [backend_of(residual_network(3), batches(103, size=4)) for _ in range(2)]
    for rank in ranks:
        rank.share(base, samples=72, memory_limit=1 << 24)
    models = [rank.load(candidate) for rank in ranks]
    models[0].prepare(list(enumerate(feeds))[:4])
    models[1].prepare(enumerate(feeds))
    for rank, loaded in zip(ranks, models, strict=True):
        assert [loaded.predict_batch(key, feed)[0].tobytes() for key, feed in enumerate(feeds)] == expected
        assert isinstance(rank._shared, SharedPrefix)
        assert rank._shared._kept == set(range(len(feeds))), "what the one has computed the other reads"
    begun = list(shared_folder().glob("*/*.begun"))
    assert len(begun) == len(feeds), "each batch once"
    for rank in ranks:
        rank.share(None)
    assert not shared_folder().exists()
