"""What a child's memory is taken to be."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from distune.distributed import memory

MIB = 2**20

FAMILY = """
import os, subprocess, sys, threading
held = bytearray(os.urandom(1)) * (40 << 20)
def have_a_child():
    child = subprocess.Popen([sys.executable, "-c", "import sys; held = b'x' * (60 << 20); print(flush=True); input()"],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdout.readline()
    print(flush=True)
    input()
    child.communicate(b"\\n")
thread = threading.Thread(target=have_a_child)  # the kernel lists children by the thread that started them
thread.start()
thread.join()
"""


@pytest.mark.parametrize("way", [memory.resident_bytes, memory._by_table])
def test_descendants_count_whichever_thread_started_them(way: object) -> None:
    process = subprocess.Popen([sys.executable, "-c", FAMILY], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        assert 100 * MIB < way(process.pid) < 200 * MIB  # type: ignore[operator]
    finally:
        process.communicate(b"\n")
    assert way(process.pid) == 0  # type: ignore[operator]


def test_a_process_is_weighed_without_those_that_are_not_its_own() -> None:
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert abs(memory.resident_bytes(other.pid) - memory._by_table(other.pid)) < 8 * MIB
        assert memory.resident_bytes(os.getpid()) > memory.resident_bytes(other.pid)
    finally:
        other.communicate(b"\n")
