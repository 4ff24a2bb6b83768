"""I/O: a link between two ranks that is listened to, slow, or cut: it then swallows everything and stays open."""

import contextlib
import socket
import threading
import time

from tests.runtime.worker.process import wait_until


class Valve:
    """Forwards TCP connections to a port on loopback until it is cut; as a context it closes them."""

    def __init__(self, target: int) -> None:
        self.is_cut = False
        self.delay_s = 0.0
        """How long everything that passes is held back."""
        self.seen = bytearray()
        """What has passed, both ways."""
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Let nothing through any more."""
        self.is_cut = True

    def close(self) -> None:
        """Close everything."""
        for each in [self._listener, *self._open]:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                # Whoever dials must not see a connection that ends at once: a ring would take its neighbour for lost.
                far = wait_until(self._dial, "the other end listens")
                for end in (near, far):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    self._open.append(end)
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _dial(self) -> socket.socket | None:
        with contextlib.suppress(ConnectionRefusedError):
            return socket.create_connection(("127.0.0.1", self._target))
        return None

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                time.sleep(self.delay_s)
                if not self.is_cut:
                    self.seen += data
                    sink.sendall(data)
            if not self.is_cut:
                sink.shutdown(socket.SHUT_RDWR)
