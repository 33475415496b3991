"""Ctrl-C and SIGTERM: the first ends the program in order, one more ends it at once."""

import os
import signal

AT_ONCE = b"\nseqtrain: stopped at once.\n"
INTERRUPTED = 130


class Interrupts:
    """Makes both signals a ``KeyboardInterrupt``, once.

    What is on the way out when a second one comes, such as the closing of a file, is not to end in
    a traceback: files are written beside and renamed, so that nothing is lost by leaving.
    """

    def __init__(self) -> None:
        self._leaving = False

    def listen(self) -> None:
        """Handle signals from here on."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def leave(self) -> None:
        """The program is over: whatever comes now ends it."""
        self._leaving = True

    def _handle(self, *_: object) -> None:
        if self._leaving:
            # Not print: the signal may have come in the middle of one.
            os.write(2, AT_ONCE)
            os._exit(INTERRUPTED)
        self._leaving = True
        raise KeyboardInterrupt
