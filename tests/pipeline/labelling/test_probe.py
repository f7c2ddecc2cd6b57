from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from pipeline.labelling import probe
from pipeline.labelling.probe import Fate, crashes_decoder, fates
from tests.factories import digit_samples

MAX_PIXELS = 10_000
_POISON = """
import os, signal, time
import simplejpeg

def poisoned(data, *arguments, of=simplejpeg.decode_jpeg_header, **more):
    if b"POISON" in bytes(data):
        os.kill(os.getpid(), signal.SIGSEGV)
    if b"BOMB" in bytes(data):
        os.kill(os.getpid(), signal.SIGKILL)
    if b"SLOW" in bytes(data):
        time.sleep(600)
    if b"ONCE" in bytes(data) and not os.path.exists({once!r}):
        open({once!r}, "w").close()
        os.kill(os.getpid(), signal.SIGSEGV)
    return of(data, *arguments, **more)

simplejpeg.decode_jpeg_header = poisoned
"""


@pytest.fixture
def poisoned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the decoders of child processes crash on images with certain words in them."""
    code = _POISON.format(once=str(tmp_path / "once"))
    (tmp_path / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")


def with_word(image: bytes, word: bytes) -> bytes:
    return image[:2] + b"\xff\xfe" + (len(word) + 2).to_bytes(2, "big") + word + image[2:]


def test_images_that_end_their_process_each_time_are_found_by_index(
    poisoned: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "DECODE_SECONDS", 15.0)
    images = [image for _, image, _ in digit_samples(6)]
    images[1] = with_word(images[1], b"POISON")
    images[2] = images[2][:40]  # does not decode, and harms nobody
    images[3] = with_word(images[3], b"ONCE")  # and never again
    images[5] = with_word(images[5], b"BOMB")
    found = fates(images, MAX_PIXELS)
    assert found == {1: Fate(signal=signal.SIGSEGV), 5: Fate(signal=signal.SIGKILL)}
    assert found[1].is_crash
    assert not found[5].is_crash  # that comes from outside
    assert crashes_decoder(images[1], MAX_PIXELS)
    assert not crashes_decoder(images[0], MAX_PIXELS)


def test_an_image_that_hangs_its_decoder_is_found(
    poisoned: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "DECODE_SECONDS", 0.5)
    monkeypatch.setattr(probe, "TRIES", 1)
    (image,) = (image for _, image, _ in digit_samples(1))
    done, fate = probe.decode_apart([with_word(image, b"SLOW")], MAX_PIXELS)
    assert done == 0
    assert fate.hung
    assert not fate.is_crash
