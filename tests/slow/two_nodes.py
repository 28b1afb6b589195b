"""Two "machines" joined by a cable: network namespaces with a pair of virtual interfaces. Needs root."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ADDRESSES = ("10.77.0.1", "10.77.0.2")
PORT = "29577"


def can_make_nodes() -> bool:
    """Whether this process may make network namespaces."""
    try:
        made = subprocess.run(["unshare", "-n", "ip", "link"], capture_output=True)
    except FileNotFoundError:
        return False
    return made.returncode == 0


def ip(*words: str) -> None:
    """One call of the system's `ip`."""
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class TwoNodes:
    """Use as a context: the namespaces end with it."""

    def __init__(self) -> None:
        self.names = [f"growlm_{os.getpid()}_{number}" for number in (0, 1)]
        self.links = [f"glm{os.getpid() % 100000}_{number}" for number in (0, 1)]

    def __enter__(self) -> TwoNodes:
        for name in self.names:
            ip("netns", "add", name)
        ip("link", "add", self.links[0], "type", "veth", "peer", "name", self.links[1])
        for name, link, address in zip(self.names, self.links, ADDRESSES, strict=True):
            ip("link", "set", link, "netns", name)
            ip("-n", name, "addr", "add", f"{address}/24", "dev", link)
            ip("-n", name, "link", "set", "lo", "up")
        self.join()
        return self

    def __exit__(self, *_: object) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)

    def join(self) -> None:
        """Plug the cable in."""
        for name, link in zip(self.names, self.links, strict=True):
            ip("-n", name, "link", "set", link, "up")

    def cut(self) -> None:
        """Pull it out: nobody is told, packets are lost."""
        ip("-n", self.names[1], "link", "set", self.links[1], "down")

    def torchrun(self, node: int, logs: Path, *arguments: str) -> subprocess.Popen:
        """`torchrun` on one of them, of two processes in all; its output goes to a file."""
        command = [
            "ip",
            "netns",
            "exec",
            self.names[node],
            sys.executable,
            "-m",
            "torch.distributed.run",
        ]
        command += ["--nnodes", "2", "--nproc-per-node", "1", "--node-rank", str(node)]
        command += ["--master-addr", ADDRESSES[0], "--master-port", PORT, *arguments]
        interface = {"GLOO_SOCKET_IFNAME": self.links[node], "OMP_NUM_THREADS": "1"}
        with (logs / f"node_{node}.log").open("a") as log:
            return subprocess.Popen(command, env=os.environ | interface, stdout=log, stderr=log)
