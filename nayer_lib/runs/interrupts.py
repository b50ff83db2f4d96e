"""How a run that is going on is asked to stop: Ctrl-C, SIGTERM, SIGHUP."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
LINE = b"\nstopping at the end of this epoch, to be resumed; a second interrupt stops at once\n"


@contextlib.contextmanager
def asks_to(stop: Callable[[], None]) -> Iterator[None]:
    """While the block runs, Ctrl-C, SIGTERM and SIGHUP call `stop`; a second Ctrl-C does what it did before.

    Only for a program with a single run: a script that loops over runs should end at the first Ctrl-C.
    A signal that is ignored stays so (nohup). Only the main thread gets signals: in another one nothing changes.
    """
    before = {}

    def ask(number: int, _frame) -> None:
        if number == signal.SIGINT:
            signal.signal(number, before[number])
        stop()
        with contextlib.suppress(OSError):  # the terminal may be gone
            os.write(2, LINE)  # a handler may not print: it may have interrupted a print

    def in_main_thread() -> bool:
        return threading.current_thread() is threading.main_thread()

    if in_main_thread():
        for number in (getattr(signal, name) for name in SIGNALS if hasattr(signal, name)):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, ask)
    try:
        yield
    finally:
        for number, handler in before.items():
            if in_main_thread() and signal.getsignal(number) is ask:
                signal.signal(number, handler)
