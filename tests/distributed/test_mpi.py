"""What only an MPI job can show: files that travel, ranks that die, exit codes, idle ranks."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from tests.distributed.mpirun import LAUNCHER, needs_mpirun, needs_ulfm, run_program

pytestmark = [needs_mpirun, pytest.mark.mpi]


def test_eight_ranks_on_few_cores_all_work_and_agree_on_the_exit_code() -> None:
    done = run_program("echo", ranks=8, exit_code=75)
    assert sorted(answer["rank"] for answer in done.answer["answers"]) == list(range(8))
    assert [local for _, _, local in done.answer["hosts"]] == list(range(8))
    assert done.code == 75


@pytest.mark.full
def test_local_ranks_are_counted_by_host() -> None:
    done = run_program("echo", ranks=4, environment={"TEST_HOSTS": "a,b,a,b"})
    assert done.answer["hosts"] == [[0, "a", 0], [1, "b", 0], [2, "a", 1], [3, "b", 1]]


def test_children_that_die_are_failures_and_their_successors_know_the_statistics() -> None:
    done = run_program("crash", ranks=3)
    failed = {known["rank"]: known for known in done.answer if "failure" in known}
    fine = {known["rank"]: known["data"] for known in done.answer if "data" in known}
    assert {rank: known["failure"] for rank, known in failed.items()} == {0: "crash", 1: "crash", 2: "crash"}
    assert "exited with status 3" in failed[1]["message"]
    assert "last words" in failed[1]["detail"]
    assert "SIGSEGV" in failed[2]["message"]
    assert [fine[rank]["received"] for rank in range(3)] == [["statistics 100: 3000000"]] * 3


def test_a_file_travels_once_to_a_node_that_lacks_it_and_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"m" * 40_000_000)
    model = "/proc/self/cwd/model.onnx"
    environment = {"TEST_HOSTS": "a,b,b", "TEST_FOLDER_OF_RANK_0": str(tmp_path)}
    done = run_program("model", ranks=3, path=model, environment=environment)
    found = {known["rank"]: known["data"] for known in done.answer}
    assert {rank: known["content"] for rank, known in found.items()} == dict.fromkeys(range(3), 40_000_000)
    assert found[0]["path"] == model
    for rank in (1, 2):
        assert found[rank]["path"] != model
        assert found[rank]["path"].endswith("/model.onnx")
        assert not Path(found[rank]["path"]).parents[1].exists()


@needs_ulfm
def test_the_files_of_a_node_outlive_the_rank_that_received_them(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"m" * 1_000_000)
    (tmp_path / "tmp").mkdir()
    environment = {
        "TEST_HOSTS": "a,b,b",
        "TEST_FOLDER_OF_RANK_0": str(tmp_path),
        "TMPDIR": str(tmp_path / "tmp"),
    }
    done = run_program("orphan", ranks=3, path="/proc/self/cwd/model.onnx", environment=environment)
    lost, (crashed, after) = done.answer
    assert (lost, crashed["failure"]) == ([{"lost": 1}], "crash")
    assert after["data"]["content"] == 1_000_000
    assert list((tmp_path / "tmp").glob("distune-*")) == []


@pytest.mark.full
def test_nothing_travels_where_the_node_has_the_file(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(b"m" * 1000)
    done = run_program("model", ranks=2, path=str(model), environment={"TEST_HOSTS": "a,b"})
    assert {known["data"]["path"] for known in done.answer} == {str(model)}


@pytest.mark.full
def test_a_large_answer_arrives() -> None:
    done = run_program("blob", ranks=2)
    assert done.answer[0]["data"]["blob"] == 120_000_000


@pytest.mark.full
def test_children_do_not_see_the_launcher() -> None:
    done = run_program("environment", ranks=2)
    for names in done.answer:
        assert not [name for name in names if name.startswith(("OMPI_", "PMIX_", "PRTE_", "PMI_"))]


@pytest.mark.full
def test_idle_ranks_sleep() -> None:
    done = run_program("idle", ranks=4)
    assert max(done.answer) < 3.0 * 0.05, "seconds of processor time in three seconds of idleness"


@needs_ulfm
def test_nobody_waits_for_the_rest_of_what_a_rank_said_that_has_ended() -> None:
    assert run_program("last-words", ranks=4, seconds=30).answer == {"ended": [1, 2, 3]}


@needs_ulfm
def test_the_end_of_an_object_whose_sender_died_is_not_taken_for_an_object() -> None:
    assert run_program("cut-short", ranks=3, seconds=30).answer == [[2, "whole"]]


def test_ranks_leave_with_the_code_of_a_master_that_never_opened_a_transport() -> None:
    assert run_program("dismiss", ranks=3, exit_code=2).code == 2


def test_an_unhandled_error_on_one_rank_ends_the_job_and_says_where() -> None:
    done = run_program("raise-on-1", ranks=3)
    assert done.code != 0
    assert "rank 1 on" in done.err
    assert "planted on rank 1" in done.err


def test_a_folder_that_another_node_lacks_is_an_error_that_names_the_node(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    folder = "/proc/self/cwd/images"
    environment = {"TEST_HOSTS": "a,b,b", "TEST_FOLDER_OF_RANK_0": str(tmp_path)}
    done = run_program("echo", ranks=3, path=folder, exit_code=2, environment=environment)
    assert done.code == 2
    assert f"folder {folder} does not exist on b" in done.answer


@pytest.mark.full
def test_a_rank_that_never_starts_does_not_hang_the_others() -> None:
    done = run_program("no-start", ranks=3)
    assert done.code != 0
    assert "planted before MPI_Init" in done.err


@pytest.mark.full
def test_a_rank_that_is_busy_in_itself_stops_nobody_from_leaving_and_ends_too(tmp_path: Path) -> None:
    done = run_program("stuck", ranks=2, exit_code=3, path=str(tmp_path))
    assert (done.code, done.answer[0]["rank"]) == (3, 0)
    left = [process for process in psutil.process_iter(["cmdline"]) if str(tmp_path) in (process.info["cmdline"] or [])]
    assert psutil.wait_procs(left, timeout=15)[1] == []


def test_no_process_outlives_a_killed_master() -> None:
    done = run_program("kill_master", ranks=3)
    children = [psutil.Process(pid) for pid in done.answer if psutil.pid_exists(pid)]
    assert done.code != 0
    assert psutil.wait_procs(children, timeout=10)[1] == []


@needs_ulfm
def test_a_rank_that_is_killed_is_survived() -> None:
    lost, answer, workers = run_program("kill", ranks=3).answer
    assert lost == [{"lost": 1}]
    assert answer[0]["rank"] == 2
    assert workers == [0, 2]


@pytest.mark.full
def test_a_rank_that_stands_still_is_given_up_and_disturbs_nobody_when_it_comes_back() -> None:
    done = run_program("silent", ranks=3)
    assert done.answer == [[{"lost": 1}], [2, 3], [0, 2]]
    assert done.code == 0


@pytest.mark.full
@pytest.mark.skipif(LAUNCHER is None or LAUNCHER.vendor != "openmpi", reason="tells Open MPI how to send")
def test_a_rank_that_stands_still_in_the_middle_of_a_long_answer_makes_nobody_deaf() -> None:
    # As between nodes: within one Open MPI copies what a rank sends out of its memory, even where that stands still.
    done = run_program("halted", ranks=3, environment={"OMPI_MCA_btl": "tcp,self"})
    assert done.answer == {"heard": [3, 4, 5], "lost": [{"lost": 1}], "late": [{"blob": 300_000_000}]}
    assert done.code == 0
