"""I/O: a listener on the control plane that has the keys of both ends: it passes on what it has read."""

import contextlib
import threading

import zmq


class Tap:
    """Stands between a rank and rank 0."""

    def __init__(self, target: int, lead: tuple[str, str], rank: tuple[str, str]) -> None:
        """`lead` and `rank` are the (public, secret) keys of rank 0 and of the rank that dials `self.port`."""
        self.messages: list[bytes] = []
        self._context = zmq.Context()
        self._front, self._back = self._context.socket(zmq.DEALER), self._context.socket(zmq.DEALER)
        self._front.curve_server = True
        self._back.curve_serverkey = lead[0].encode()
        for end, (public, secret) in ((self._front, lead), (self._back, rank)):
            end.curve_publickey, end.curve_secretkey = public.encode(), secret.encode()
            end.linger = 0
        self.port = self._front.bind_to_random_port("tcp://127.0.0.1")
        self._back.connect(f"tcp://127.0.0.1:{target}")
        self._is_open = True
        self._thread = threading.Thread(target=self._pass, daemon=True)
        self._thread.start()

    def _pass(self) -> None:
        ways = {self._front: self._back, self._back: self._front}
        poller = zmq.Poller()
        for end in ways:
            poller.register(end, zmq.POLLIN)
        while self._is_open:
            for end, _ in poller.poll(100):
                with contextlib.suppress(zmq.Again):
                    frames = end.recv_multipart(zmq.NOBLOCK)
                    self.messages += frames
                    ways[end].send_multipart(frames)

    def close(self) -> None:
        """Close both ends."""
        self._is_open = False
        self._thread.join()
        self._context.destroy(0)
