"""Batches: fixed order, exact heads, live dataloaders, and errors of the user's code."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distune.config.job import ComponentSpec, DataloaderSpec
from distune.data import Batch, DataSource, open_dataloader
from distune.errors import DataError, UserCodeError

USER = "tests.data.user_components"


def spec(dataset: str, args: dict[str, Any] | None = None, **settings: Any) -> DataloaderSpec:
    return DataloaderSpec(ComponentSpec(dataset, args or {}), **settings)


def flat(lists: Iterable[list[int]]) -> list[int]:
    return list(itertools.chain.from_iterable(lists))


def labels(source: DataSource) -> list[list[int]]:
    return [np.asarray(batch.labels).tolist() for batch in source]


@pytest.fixture
def npz(tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "d.npz"
    np.savez(path, x=np.arange(40, dtype=np.uint8).reshape(10, 4), y=np.arange(10))
    return {"path": str(path), "inputs": "x", "label": "y"}


def test_last_batch_is_kept_or_dropped(npz: dict[str, Any]) -> None:
    assert [len(b) for b in labels(open_dataloader(spec("Npz", npz, batch_size=4), 0))] == [4, 4, 2]
    dropped = open_dataloader(spec("Npz", npz, batch_size=4, last_batch="discard"), 0)
    assert [len(b) for b in labels(dropped)] == [4, 4]
    assert dropped.samples == 8
    with pytest.raises(DataError, match="gives no batch"):
        open_dataloader(spec("Npz", npz, batch_size=11, last_batch="discard"), 0)


def test_shuffling_is_seeded_and_the_same_every_time(npz: dict[str, Any]) -> None:
    source = open_dataloader(spec("Npz", npz, batch_size=3, shuffle=True), 5)
    first = labels(source)
    assert labels(source) == first == labels(open_dataloader(spec("Npz", npz, batch_size=3, shuffle=True), 5))
    assert sorted(flat(first)) == list(range(10)) != flat(first)
    assert labels(open_dataloader(spec("Npz", npz, batch_size=3, shuffle=True), 6)) != first


@pytest.mark.parametrize("dataset", ["Npz", f"{USER}:Squares", f"{USER}:stream"])
@pytest.mark.parametrize("wanted", [1, 4, 7, 100])
def test_head_is_exactly_the_first_samples_and_shards_cover_it(npz: dict[str, Any], dataset: str, wanted: int) -> None:
    source = open_dataloader(spec(dataset, npz if dataset == "Npz" else {"count": 10}, batch_size=3), 0)
    whole = list(source.head(wanted))
    assert flat(np.asarray(b.labels).tolist() for b in whole) == list(range(min(wanted, 10)))
    sharded: list[Batch] = sorted(
        (b for shard in range(3) for b in source.head(wanted, shard, 3)), key=lambda batch: batch.index
    )
    assert [(b.index, np.asarray(b.labels).tolist()) for b in sharded] == [
        (b.index, np.asarray(b.labels).tolist()) for b in whole
    ]


def test_fast_and_slow_road_agree(npz: dict[str, Any]) -> None:
    fast = spec("Npz", npz, batch_size=4, transforms=(ComponentSpec("Rescale"),))
    slow = spec("Npz", npz, batch_size=4, transforms=(ComponentSpec("Rescale"), ComponentSpec("LabelShift")))
    for one, other in zip(open_dataloader(fast, 0), open_dataloader(slow, 0), strict=True):
        assert np.array_equal(one.inputs, other.inputs)  # type: ignore[arg-type]
        assert np.array_equal(one.labels, other.labels)  # type: ignore[arg-type]


def test_user_datasets_with_index_and_without() -> None:
    indexed = open_dataloader(spec(f"{USER}:Squares", {"count": 4}, batch_size=2, shuffle=True), 0)
    assert indexed.samples == 4
    streamed = open_dataloader(spec(f"{USER}:stream", {"count": 5}, batch_size=2), 0)
    assert labels(streamed) == labels(streamed) == [[0, 1], [2, 3], [4]]
    with pytest.raises(DataError, match="cannot be shuffled"):
        open_dataloader(spec(f"{USER}:stream", shuffle=True), 0)


def test_user_transforms_are_functions_or_classes() -> None:
    steps = (ComponentSpec(f"{USER}:halve"), ComponentSpec(f"{USER}:AddToLabel", {"amount": 10}))
    batch = next(iter(open_dataloader(spec(f"{USER}:Squares", batch_size=3, transforms=steps), 0)))
    assert batch.inputs[:, 0].tolist() == [0, 0.5, 2]  # type: ignore[index,call-overload]
    assert np.asarray(batch.labels).tolist() == [10, 11, 12]


def test_filters_choose_samples() -> None:
    source = open_dataloader(spec(f"{USER}:Squares", batch_size=9, filter=ComponentSpec(f"{USER}:even")), 0)
    assert labels(source) == [[0, 2, 4]]
    balanced = open_dataloader(spec(f"{USER}:Squares", filter=ComponentSpec("LabelBalance", {"size": 1})), 0)
    assert balanced.samples == 5


def test_samples_that_do_not_stack_are_named() -> None:
    with pytest.raises(DataError, match=r"input of sample 1 has shape \(4,\), that of sample 0 has \(3,\)"):
        list(open_dataloader(spec(f"{USER}:ragged", batch_size=2), 0))


def test_errors_of_user_code_carry_the_users_traceback_only() -> None:
    with pytest.raises(UserCodeError) as caught:
        list(open_dataloader(spec(f"{USER}:broken", batch_size=2), 0))
    message = str(caught.value)
    assert "item 1" in message
    assert "row 1 is gone" in message
    assert "user_components.py" in message
    assert "loader.py" not in message
    with pytest.raises(UserCodeError, match=r"transform .*fail.*ZeroDivisionError"):
        list(open_dataloader(spec(f"{USER}:Squares", transforms=(ComponentSpec(f"{USER}:fail"),)), 0))


def test_live_dataloaders_give_batches() -> None:
    data = [(np.zeros((4, 2)), np.arange(4)), (np.zeros((3, 2)), np.arange(3))]
    source = open_dataloader(data, 0)
    assert (source.batch_size, source.samples) == (4, 7)
    assert [(b.index, b.size) for b in source] == [(0, 4), (1, 3)]
    assert [b.size for b in source.head(5)] == [4, 1]
    single = next(iter(open_dataloader([(np.zeros((1, 2)), 3)], 0)))
    assert single.labels.tolist() == [3]  # type: ignore[union-attr]
    named = next(iter(open_dataloader([{"a": np.zeros((2, 2)), "b": np.ones((2, 1)), "labels": np.arange(2)}], 0)))
    assert set(named.inputs) == {"a", "b"}  # type: ignore[arg-type]
    pair = next(iter(open_dataloader([([np.zeros((2, 2)), np.ones((2, 1))], np.arange(2))], 0)))
    assert isinstance(pair.inputs, tuple)


def test_a_generator_is_refused_because_every_trial_reads_the_data() -> None:
    def generate() -> Iterator[Any]:
        yield np.zeros((1, 2)), 0

    with pytest.raises(DataError, match="read only once"):
        open_dataloader(generate(), 0)
    with pytest.raises(DataError, match="axis 0 must be the same"):
        list(open_dataloader([(np.zeros((4, 2)), np.arange(3))], 0))
    with pytest.raises(DataError, match="str where a pair"):
        list(open_dataloader(["text"], 0))


def test_a_batch_without_samples_is_named() -> None:
    good, empty = (np.zeros((4, 2)), np.arange(4)), (np.zeros((0, 2)), np.zeros(0))
    with pytest.raises(DataError, match=r"batch 1 of the dataloader has no samples.*\(0, 2\).*leave it out"):
        list(open_dataloader([good, empty, good], 0))


def test_torch_dataloader() -> None:
    torch = pytest.importorskip("torch")
    data = torch.utils.data.TensorDataset(torch.arange(10.0).reshape(5, 2), torch.arange(5))
    source = open_dataloader(torch.utils.data.DataLoader(data, batch_size=2), 0)
    assert (source.batch_size, source.samples) == (2, 5)
    assert labels(source) == [[0, 1], [2, 3], [4]]
    assert source.digest() == source.digest()
    shuffled = open_dataloader(torch.utils.data.DataLoader(data, batch_size=2, shuffle=True), 0)
    assert shuffled.digest() == shuffled.digest()
    few = torch.utils.data.SubsetRandomSampler(range(3))
    assert open_dataloader(torch.utils.data.DataLoader(data, batch_size=2, sampler=few), 0).samples == 3
    own = torch.utils.data.BatchSampler(few, batch_size=2, drop_last=False)
    assert open_dataloader(torch.utils.data.DataLoader(data, batch_sampler=own), 0).samples is None


def test_digest_is_of_the_content(npz: dict[str, Any]) -> None:
    plain = open_dataloader(spec("Npz", npz), 0).digest()
    assert open_dataloader(spec("Npz", npz, batch_size=4, shuffle=True), 3).digest() == plain
    first = open_dataloader([(np.zeros((4, 2)), np.arange(4))], 0).digest()
    assert open_dataloader([(np.zeros((4, 2)), np.arange(4))], 0).digest() == first
    assert open_dataloader([(np.ones((4, 2)), np.arange(4))], 0).digest() != first


def digest(data: Any) -> str:
    return open_dataloader(data, 0).digest()


@pytest.mark.parametrize("batch", range(5))
def test_every_batch_of_a_list_counts_when_a_run_is_resumed(batch: int) -> None:
    def data() -> list[Any]:
        return [({"a": np.full((4, 2), index), "b": np.zeros((4, 1))}, np.arange(4)) for index in range(5)]

    relabelled, renamed = data(), data()
    relabelled[batch][1][1] = 3
    renamed[batch][0]["c"] = renamed[batch][0].pop("b")
    assert digest(data()) == digest(data())
    assert len({digest(data()), digest(relabelled), digest(renamed), digest(data()[:-1])}) == 4


class Pairs:
    """Batches that can only be iterated, as INC 2.x takes them; what they are made of is in memory."""

    def __init__(self, changed: int | None = None, count: int = 40) -> None:
        self.labels = np.arange(count)
        if changed is not None:
            self.labels[changed] += 1

    def __iter__(self) -> Iterator[Any]:
        for index, label in enumerate(self.labels):
            yield np.full((1, 2), index), np.full(1, label)


@pytest.mark.parametrize("changed", [0, 17, 39])
def test_a_change_in_small_data_is_noticed_however_they_are_read(changed: int) -> None:
    def described(**args: Any) -> DataloaderSpec:
        return spec(f"{USER}:Squares", {"count": 40, **args})

    assert digest(Pairs()) == digest(Pairs()) != digest(Pairs(changed))
    assert digest(described()) == digest(described()) != digest(described(changed=changed))
    torch = pytest.importorskip("torch")
    for shuffle in (False, True):

        def live(changed: int | None = None, shuffle: bool = shuffle) -> Any:
            data = [(torch.full((2,), index), torch.tensor(label)) for index, label in enumerate(Pairs(changed).labels)]
            return torch.utils.data.DataLoader(data, batch_size=16, shuffle=shuffle, drop_last=True)

        assert digest(live()) == digest(live()) != digest(live(changed))


def test_samples_of_any_form_are_told_apart_before_they_are_batches() -> None:
    torch = pytest.importorskip("torch")
    image = pytest.importorskip("PIL.Image")

    def live(shade: int = 9, word: str = "good") -> Any:
        shown = image.new("L", (4, 4)), image.new("L", (4, 4), shade)
        data = [({"image": each, "text": [word, "film"]}, {"of": None, "is": 1}) for each in shown]
        made = (np.zeros((2, 3)), np.zeros(2))
        return torch.utils.data.DataLoader(data, batch_size=2, collate_fn=lambda pairs: made)

    assert digest(live()) == digest(live())
    assert len({digest(live()), digest(live(shade=8)), digest(live(word="bad"))}) == 3


def test_of_large_data_samples_from_all_over_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    read: list[int] = []

    class Large(torch.utils.data.Dataset):  # type: ignore[misc,name-defined]
        def __init__(self, grade: int = 1) -> None:
            self.grade = grade

        def __len__(self) -> int:
            return 1_000_000

        def __getitem__(self, index: int) -> Any:
            read.append(index)
            return np.full((64, 64), index % 7, np.float32), index * self.grade % 10

    before = digest(torch.utils.data.DataLoader(Large(), batch_size=32))
    assert digest(torch.utils.data.DataLoader(Large(), batch_size=32)) == before
    assert digest(torch.utils.data.DataLoader(Large(grade=3), batch_size=32)) != before
    assert {index // 100_000 for index in read} == set(range(10))
    assert len(set(read)) < 5000


def test_tensors_in_memory_are_looked_at_whole() -> None:
    torch = pytest.importorskip("torch")

    def live(changed: int | None = None) -> Any:
        labels = torch.from_numpy(Pairs(changed, count=10_000).labels)
        data = torch.utils.data.TensorDataset(torch.zeros(10_000, 512), labels)
        return torch.utils.data.DataLoader(data, batch_size=100)

    assert digest(live()) == digest(live()) != digest(live(changed=7777))


def test_names_are_listed_without_heavy_imports() -> None:
    code = (
        "import sys; from distune.data import datasets, transforms, filters; from distune.metrics import metrics\n"
        "datasets(); transforms(); filters(); metrics()\n"
        "print([m for m in ('PIL', 'scipy', 'sklearn', 'torch', 'onnx', 'onnxruntime') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_components_derived_from_our_base_classes_are_user_code_too() -> None:
    with pytest.raises(UserCodeError, match=r"sample 0.*disk gone"):
        list(open_dataloader(spec(f"{USER}:BrokenDerived"), 0))
    with pytest.raises(UserCodeError, match=r"transform BrokenStep.*step gone"):
        list(open_dataloader(spec("Dummy", {"shape": [2, 2]}, transforms=(ComponentSpec(f"{USER}:BrokenStep"),)), 0))
