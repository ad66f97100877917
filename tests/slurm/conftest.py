"""One real SLURM for all of tests/slurm: slurmctld, munged and two slurmd nodes on this machine, started by slurm_cluster.sh."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
from collections.abc import Iterator

import pytest
from slurm_parts import LOGS, Slurm, tail

HERE = pathlib.Path(__file__).parent
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "ip", "unshare", "nsenter", "ps")


def why_not() -> str | None:
    """What keeps a cluster from being started here; None where nothing does."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [name for name in NEEDED if shutil.which(name, path=path) is None]
    if missing:
        return f"SLURM is not installed here (no {', '.join(missing)}): tests/slurm/slurm_cluster.sh install does it, as root, by apt-get"
    if os.getuid() != 0:
        return "the nodes are network and process namespaces, which only root can make"
    probe = subprocess.run(["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "true"], capture_output=True, text=True, check=False)
    return f"this machine makes no namespaces, which the nodes are: {probe.stderr.strip()}" if probe.returncode else None


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """The cluster, up for the whole session. Skips, saying so, where it cannot be."""
    if reason := why_not():
        pytest.skip(reason)
    folder = pathlib.Path(f"/var/tmp/mdpretrain-slurm-{os.getpid()}")
    own = {"SC_DIR": str(folder), "SC_ID": str(20 + os.getpid() % 200), "SC_MEM": "6000", "SC_KILL_WAIT": "30", "SC_GRACE": "60"}
    cluster = Slurm(HERE / "slurm_cluster.sh", os.environ | own)
    cluster.script("up", "2")
    earlier = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(folder / "etc" / "slurm.conf")
    try:
        yield cluster
    finally:
        LOGS.mkdir(parents=True, exist_ok=True)
        shutil.copytree(folder / "log", LOGS / "cluster", dirs_exist_ok=True)
        cluster.script("down")
        os.environ.pop("SLURM_CONF")
        if earlier is not None:
            os.environ["SLURM_CONF"] = earlier


@pytest.fixture
def kept(request: pytest.FixtureRequest) -> pathlib.Path:
    """The folder of one scenario, where its runs, scripts and logs stay until the scenario runs again."""
    folder = LOGS / request.node.name.removeprefix("test_")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """A scenario that failed says where its logs are, and shows their ends."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    folder = getattr(item, "funcargs", {}).get("kept")
    if report.failed and folder is not None:
        logs = sorted(folder.rglob("*.log"))
        report.sections.append((f"logs of SLURM's jobs, kept in {folder}", "\n".join(f"== {log}\n{tail(log)}" for log in logs)))
