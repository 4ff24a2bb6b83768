"""The link files that the orchestrator writes are what MLX's own parsers take."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import GOLDEN as ALL_GOLDEN
from tests.ports import free_ports

GOLDEN = ALL_GOLDEN / "commands"


def link_file(name: str) -> str:
    """Return the file that a group's golden text ends with."""
    return (GOLDEN / f"group-{name}.txt").read_text().rstrip("\n").rpartition("\n")[2]


def test_mlx_reads_the_jaccl_matrix_as_the_rdma_of_its_hosts(tmp_path):
    from mlx._distributed_utils.common import Hostfile

    matrix = json.loads(link_file("jaccl"))
    hosts = [{"ssh": f"host{i}", "ips": ["192.168.1.1"], "rdma": row} for i, row in enumerate(matrix)]
    path = tmp_path / "hosts.json"
    path.write_text(json.dumps({"backend": "jaccl", "hosts": hosts}))
    read = Hostfile.from_file(path)
    # what mlx.launch checks before it starts anything, and what it then writes to MLX_IBV_DEVICES
    assert all(len(host.rdma) == len(read.hosts) for host in read.hosts)
    assert all(host.rdma[host.rank] is None for host in read.hosts)
    assert json.loads(json.dumps([host.rdma for host in read.hosts])) == matrix


@pytest.mark.parametrize("name", ["loopback", "pipeline"])
def test_mlx_forms_a_ring_from_the_host_file(name, tmp_path):
    """The addresses of the golden file are replaced by free ones of this machine; the form stays."""
    rows = [[f"127.0.0.1:{port}"] for port in free_ports(len(json.loads(link_file(name))))]
    path = tmp_path / "links.json"
    path.write_text(json.dumps(rows))
    code = (
        "import mlx.core as mx; group = mx.distributed.init(backend='ring', strict=True);"
        "print(group.rank(), group.size(), mx.distributed.all_sum(mx.array(group.rank() + 1)).item())"
    )
    ranks = [_rank(code, path, rank) for rank in range(3)]
    said = [process.communicate(timeout=120)[0].split() for process in ranks]
    assert said == [["0", "3", "6"], ["1", "3", "6"], ["2", "3", "6"]]


def _rank(code: str, hosts: Path, rank: int) -> subprocess.Popen[str]:
    environment = {**os.environ, "MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
