"""I/O: several hosts on one machine: network namespaces with a real `sshd` each, a bridge between them, and cables.

    lab.add("one")                     a host with an address, keys, a state directory and an sshd of its own
    host.transport()                   an SshTransport to it; its key is trusted already
    host.run("command", ...)           run something inside of it, not over ssh
    host.cut(), host.restore()         pull the cable, plug it in again; nobody gets a reset
    host.reboot()                      kill everything that runs on it and start it again, files stay
    host.stop_sshd(), host.start_sshd(PATH="/nowhere"), host.new_host_key(), lab.distrust()
    lab.write_nodes(conf)              a file below conf/nodes for each host: reach ssh, its address, its memory
    lab.environment()                  what `orchestrate` needs in its environment to reach them

Hosts share the file system, the clock and the kernel. Each has its own addresses, ports, processes (`ip netns pids`),
home (with root's pip configuration and cache in it) and `ORCHESTRATE_STATE`, which its sshd sets. They reach the
outside through this machine's own network (masquerading), so that a package index that pip is configured with works
there too; for that `ip_forward` is switched on, and left on.

Names and addresses are taken by a lock that the kernel frees when we die; whoever takes them next removes what a killed
run has left. Processes are ended by pid.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.transport.ssh import CONFIG_VARIABLE, SshTransport, socket_directory
from orchestrator.transport.ssh_words import Destination

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAM = Path(sys.executable).parent / "orchestrate"
TOOLS = ("ip", "nft", "sshd", "ssh", "ssh-keygen", "ssh-keyscan")
LOCKS = Path("/tmp/orchestrate-cluster-tests")
PREFIX = "10.213"
"""Of 10.213.N.0/24, where N is the number of the lab."""
DEADLINE_S = 180.0
T = TypeVar("T")


def missing() -> str | None:
    """Say what keeps labs from being built here; None where nothing does."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    absent = [tool for tool in TOOLS if shutil.which(tool, path=_path()) is None]
    if absent:
        return f"not installed: {', '.join(absent)}"
    probe = f"oclprobe{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", probe], capture_output=True, check=False).returncode:
        return "this machine does not let root make network namespaces"
    _call("ip", "netns", "del", probe)
    return None


def poll(what: Callable[[], T | None], deadline_s: float = DEADLINE_S) -> T:
    """Return the first true answer; fails at the deadline."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        if answer := what():
            return answer
        time.sleep(0.02)
    raise AssertionError(f"nothing within {deadline_s} s")


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _path() -> str:
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def _call(*argv: str, check: bool = True, input: str | None = None) -> str:  # noqa: A002
    done = subprocess.run(
        argv, capture_output=True, text=True, check=False, input=input, env={**os.environ, "PATH": _path()}
    )
    assert not check or done.returncode == 0, f"{argv} exited {done.returncode}: {done.stderr}"
    return done.stdout


class Host:
    """One machine of a lab."""

    def __init__(self, lab: Lab, name: str, number: int) -> None:
        self.lab = lab
        self.name = name
        self.address = f"{PREFIX}.{lab.number}.{number}"
        self.state = lab.root / name / "state"
        self.namespace = f"ocl{lab.number}h{number}"
        self._link = f"ocl{lab.number}v{number}"
        self._files = lab.root / name / "ssh"
        self.home = lab.root / name / "home"
        self._files.mkdir(parents=True)
        self.state.mkdir()
        self._furnish()
        self._sshd: subprocess.Popen[bytes] | None = None
        self._environment: dict[str, str] = {}
        self.new_host_key()
        self._plug()
        self.start_sshd()

    # -- what tests do with it -------------------------------------------------------------------------------------

    def transport(self, user: str | None = None) -> SshTransport:
        """Return a fresh transport to it, as this test's orchestrator would make it."""
        return SshTransport(
            Destination(self.name, self.address, user), self.lab.known_hosts, config=str(self.lab.ssh_config)
        )

    def popen(self, *argv: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start a process on it, not over ssh; it dies with the host."""
        environment = {**os.environ, "ORCHESTRATE_STATE": str(self.state), "HOME": str(self.home)}
        return subprocess.Popen(["ip", "netns", "exec", self.namespace, *argv], env=environment, **options)

    def run(self, *argv: str) -> str:
        """Run a command on it, not over ssh, and return what it prints."""
        return _call("ip", "netns", "exec", self.namespace, *argv)

    def mount_small_disk(self, place: Path, size: str) -> None:
        """Mount an empty memory disk of a size such as `256k` where its ssh sessions see it, until it is shut down."""
        assert self._sshd is not None
        place.mkdir(parents=True, exist_ok=True)
        _call(
            "nsenter",
            "-t",
            str(self._sshd.pid),
            "-m",
            "mount",
            "-t",
            "tmpfs",
            "-o",
            f"size={size}",
            "tmpfs",
            str(place),
        )

    def pids(self) -> set[int]:
        """Return everything that runs on it."""
        return {int(line) for line in _call("ip", "netns", "pids", self.namespace, check=False).split()}

    def node(self, **fields: Any) -> dict[str, Any]:
        """Return it as the content of a node file."""
        addresses = {"lan": self.address}
        return {"reach": "ssh", "host": self.address, "user": "root", "addresses": addresses, **fields}

    def cut(self) -> None:
        """Pull the cable: packets vanish both ways, open connections hang."""
        _call("ip", "link", "set", self._link, "down")

    def restore(self) -> None:
        """Plug the cable in again; returns when its ssh server, if it runs, can be reached."""
        _call("ip", "link", "set", self._link, "up")
        _call("ip", "neigh", "flush", "dev", self.lab.bridge)  # or its absence is remembered for a few seconds
        self.run("ip", "neigh", "flush", "dev", "eth0")
        if self._sshd is not None:
            poll(self._is_listening)

    def reboot(self) -> None:
        """Lose all processes and connections, keep the files, come up again."""
        self.shut_down()
        self.boot()

    def shut_down(self) -> None:
        """Lose all processes and the network."""
        self._kill(self.pids)
        self._sshd = None
        _call("ip", "netns", "del", self.namespace)
        _call("ip", "link", "del", self._link, check=False)

    def boot(self) -> None:
        """Come up again after `shut_down`."""
        self._plug()
        self.start_sshd(**self._environment)

    def start_sshd(self, **environment: str) -> None:
        """Start its ssh server; `environment` is what sessions get (SetEnv), besides ORCHESTRATE_STATE."""
        self._environment = environment
        config = self._files / "sshd_config"
        pairs = {"ORCHESTRATE_STATE": str(self.state), "HOME": str(self.home), **environment}
        settings = " ".join(f'{name}="{value}"' for name, value in pairs.items())
        config.write_text(
            f"ListenAddress {self.address}\nHostKey {self._files}/host_key\nPidFile none\nUsePAM no\nStrictModes no\n"
            f"AuthorizedKeysFile {self.lab.key}.pub\nPasswordAuthentication no\nPermitRootLogin yes\nUseDNS no\n"
            "KbdInteractiveAuthentication no\nPrintMotd no\nLogLevel VERBOSE\nMaxStartups 100\n"
            f"SetEnv {settings}\n"
        )
        with (self._files / "log").open("ab") as log:
            # sshd insists on an absolute path of its own
            program = shutil.which("sshd", path=_path())
            self._sshd = self.popen(str(program), "-D", "-e", "-f", str(config), stdout=log, stderr=log)
        poll(self._is_listening)

    def stop_sshd(self) -> None:
        """Stop its ssh server, and end the connections to it."""
        assert self._sshd is not None
        self._kill(lambda: {pid for pid in self.pids() if "sshd" in self._command(pid)})
        self._sshd = None

    def new_host_key(self) -> None:
        """Make another host key, as a reinstalled machine has; sshd shows it after its next start."""
        key = self._files / "host_key"
        for file in (key, key.with_suffix(".pub")):
            file.unlink(missing_ok=True)
        _call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))

    @property
    def host_key(self) -> str:
        """Return its public host key, type and base64."""
        return " ".join((self._files / "host_key.pub").read_text().split()[:2])

    @property
    def fingerprint(self) -> str:
        """Return the SHA256 fingerprint of its host key, as ssh-keygen says it."""
        return _call("ssh-keygen", "-lf", str(self._files / "host_key.pub")).split()[1]

    def sshd_log(self) -> str:
        """Return what its ssh server has logged."""
        return (self._files / "log").read_text()

    # -- inside ----------------------------------------------------------------------------------------------------

    def _furnish(self) -> None:
        """Make a home without the start files of whoever runs the tests, but where pip finds what it is told."""
        root = Path(os.environ.get("HOME", "/root"))
        for name in (".config/pip", ".pip", ".cache/pip", ".netrc"):
            place = self.home / name
            place.parent.mkdir(parents=True, exist_ok=True)
            if (root / name).exists():
                place.symlink_to(root / name)

    def _plug(self) -> None:
        outside, inside = self._link, self.namespace
        _call("ip", "netns", "add", inside)
        _call("ip", "link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", inside)
        _call("ip", "link", "set", outside, "master", self.lab.bridge, "up")
        _call("ip", "-n", inside, "addr", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _call("ip", "-n", inside, "link", "set", device, "up")
        _call("ip", "-n", inside, "route", "add", "default", "via", self.lab.gateway)

    def _is_listening(self) -> bool:
        assert self._sshd is not None
        assert self._sshd.poll() is None, self.sshd_log()
        with contextlib.suppress(OSError), socket.create_connection((self.address, 22), timeout=1) as probe:
            return probe.recv(4) == b"SSH-"
        return False

    @staticmethod
    def _command(pid: int) -> str:
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode("utf-8", "replace")
        except OSError:
            return ""

    def _kill(self, find: Callable[[], set[int]]) -> None:
        def gone() -> bool:
            # Who is killed may just have forked: all are gone when nobody is found any more.
            pids = {pid for pid in find() if is_alive(pid)}
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if self._sshd is not None:
                self._sshd.poll()  # reaped, or it would count as there
            return not pids

        poll(gone)
        if self._sshd is not None:
            self._sshd.wait()


class Lab:
    """A bridge with hosts on it, and one user who may log in to all of them."""

    def __init__(self, root: Path, state: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.root = root
        self.state = state
        """The state directory of the orchestrator, on this machine."""
        self.hosts: dict[str, Host] = {}
        self.number, self._lock = _take_number()
        self.bridge = f"ocl{self.number}"
        self.gateway = f"{PREFIX}.{self.number}.1"
        """The address of this machine in the lab's network."""
        self.key = root / "id"
        self.ssh_config = root / "ssh_config"
        self.known_hosts = state / "ssh" / "known_hosts"
        self.known_hosts.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(self.number)
        _call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key))
        self.ssh_config.write_text(
            f"Host *\n  User root\n  IdentityFile {self.key}\n  IdentitiesOnly yes\n  UserKnownHostsFile /dev/null\n"
            "  GlobalKnownHostsFile /dev/null\n"
        )
        Path("/run/sshd").mkdir(exist_ok=True)
        _call("ip", "link", "add", self.bridge, "type", "bridge")
        _call("ip", "addr", "add", f"{self.gateway}/24", "dev", self.bridge)
        _call("ip", "link", "set", self.bridge, "up")
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        _call(
            "nft", "-f", "-",
            input=f"table ip {self.bridge} {{ chain out {{ type nat hook postrouting priority srcnat; "
            f'ip saddr {PREFIX}.{self.number}.0/24 oifname != "{self.bridge}" masquerade; }}; }}\n',
        )  # fmt: skip

    def add(self, name: str) -> Host:
        """Add a host, up and trusted."""
        host = self.hosts[name] = Host(self, name, len(self.hosts) + 2)
        self.trust(host)
        return host

    def trust(self, host: Host) -> None:
        """Put a host's key into the orchestrator's known hosts, in place of the one before."""
        known = self.known_hosts.read_text().splitlines() if self.known_hosts.exists() else []
        lines = [line for line in known if line.split()[0] != host.address]
        self.known_hosts.write_text("\n".join([*lines, f"{host.address} {host.host_key}", ""]))

    def distrust(self) -> None:
        """Forget every host key."""
        self.known_hosts.write_text("")

    def write_nodes(self, conf: Path, **fields: Any) -> None:
        """Write `conf/nodes/<host>.yaml` for each host, with `fields` on top."""
        import yaml

        for host in self.hosts.values():
            text = yaml.safe_dump({host.name: host.node(**fields)}, sort_keys=False)
            (conf / "nodes").mkdir(parents=True, exist_ok=True)
            (conf / "nodes" / f"{host.name}.yaml").write_text(text)

    def environment(self) -> Mapping[str, str]:
        """Return the environment of an `orchestrate` on this machine that reaches the hosts."""
        own = {"ORCHESTRATE_STATE": str(self.state), CONFIG_VARIABLE: str(self.ssh_config), "NO_COLOR": "1"}
        return {**os.environ, **own}

    def orchestrate(self, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run the program on this machine to its end, without a terminal."""
        return subprocess.run(
            [str(PROGRAM), *arguments], cwd=cwd or self.root, env=dict(self.environment()), text=True,
            capture_output=True, stdin=subprocess.DEVNULL, timeout=900, check=False,
        )  # fmt: skip

    def close(self) -> None:
        """End everything and leave nothing."""
        for host in self.hosts.values():
            with contextlib.suppress(AssertionError):
                host.shut_down()
        # Before the number is given back: then somebody else's hosts may have these names.
        left = [host.name for host in self.hosts.values() if host.pids()]
        _remove_leftovers(self.number)
        os.close(self._lock)
        assert not left, f"processes were left on {left}"


def masters() -> set[Path]:
    """Return the sockets of shared ssh connections that are there now."""
    return set(socket_directory().iterdir())


def _take_number() -> tuple[int, int]:
    LOCKS.mkdir(mode=0o700, exist_ok=True)
    routes = _call("ip", "route")
    for number in range(1, 250):
        descriptor = os.open(LOCKS / str(number), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            continue
        if f"{PREFIX}.{number}.0/24" not in routes or f"dev ocl{number} " in routes:
            return number, descriptor
        os.close(descriptor)
    raise RuntimeError("every network of labs is taken")


def _remove_leftovers(number: int) -> None:
    for line in _call("ip", "netns", "list").splitlines():
        name = line.split()[0]
        if name.startswith(f"ocl{number}h"):
            for pid in _call("ip", "netns", "pids", name, check=False).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            _call("ip", "netns", "del", name)
    for link in _call("ip", "-br", "link").splitlines():
        name = link.split()[0].split("@")[0]
        if name == f"ocl{number}" or name.startswith(f"ocl{number}v"):
            _call("ip", "link", "del", name, check=False)
    _call("nft", "delete", "table", "ip", f"ocl{number}", check=False)
