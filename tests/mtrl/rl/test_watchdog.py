"""The watchdog ends a block that takes too long, and leaves the alarm signal as it found it."""

import signal
import threading
import time

import pytest

from mtrl.rl.watchdog import Watchdog, WatchdogError

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs the alarm signal")


def test_a_slow_block_is_ended() -> None:
    with pytest.raises(WatchdogError, match=r"^no answer within 0\.05 s$"), Watchdog(0.05):
        time.sleep(1e6)


def test_a_loop_without_end_is_ended() -> None:
    def spin() -> None:
        with Watchdog(0.05):
            while True:
                pass

    with pytest.raises(WatchdogError):
        spin()


def test_what_comes_after_a_block_is_left_alone() -> None:
    before = signal.getsignal(signal.SIGALRM)
    watchdog = Watchdog(0.05)
    for _ in range(3):
        with watchdog:
            pass
    with pytest.raises(KeyError), watchdog:
        raise KeyError
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert signal.getsignal(signal.SIGALRM) == before
    time.sleep(0.1)


def test_zero_is_no_limit_and_other_threads_have_none() -> None:
    with Watchdog(0):
        assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    seen: list[tuple[float, float]] = []

    def elsewhere() -> None:
        with Watchdog(5):
            seen.append(signal.getitimer(signal.ITIMER_REAL))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [(0, 0)]


@pytest.mark.parametrize("seconds", [-1, float("inf"), float("nan")])
def test_a_limit_is_a_number_of_seconds(seconds: float) -> None:
    with pytest.raises(ValueError, match=f"the time limit in seconds is {seconds}; it must be at least 0 and finite"):
        Watchdog(seconds)
