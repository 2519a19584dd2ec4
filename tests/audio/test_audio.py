"""Audio files: every format there and back, parts against the whole, and a named error for every damage."""

from __future__ import annotations

import importlib.util
import math
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch

from pyrosep import audio
from pyrosep.audio.headers import mp3_samples
from pyrosep.errors import (
    AudioError,
    ConfigurationError,
    EmptyAudioError,
    MissingDependencyError,
    MissingFileError,
    NonFiniteAudioError,
    NotAudioError,
    SampleRateError,
    ShapeError,
    TruncatedAudioError,
)

RATE = 22_050


def tone(seconds: float = 3.0, channels: int = 2, rate: int = RATE) -> np.ndarray:
    """Two tones and a little noise, `(channel, time)`, so that no two stretches of it are equal."""
    time = np.arange(round(seconds * rate) + 123) / rate
    noise = np.random.default_rng(0).standard_normal((channels, len(time)))
    waves = np.stack([np.sin(2 * math.pi * 440 * (k + 1) * time) for k in range(channels)])
    return (0.3 * waves + 0.02 * noise).astype(np.float32)


def encode(
    path: Path,
    samples: np.ndarray,
    codec: str,
    streams: int = 1,
    rate: int = RATE,
    bits: int = 0,
    **options: str,
) -> Path:
    """Encode by PyAV; stream k holds the samples times (k + 1) / streams."""
    layout = "stereo" if samples.shape[0] == 2 else "mono"
    muxer = {name: options.pop(name) for name in ("write_xing", "movflags", "id3v2_version") if name in options}
    with av.open(str(path), "w", options=muxer) as container:
        outputs = [container.add_stream(codec, rate=rate, layout=layout, options=options) for _ in range(streams)]
        for k, output in enumerate(outputs):
            if bits:
                output.bit_rate = bits
            frame = av.AudioFrame.from_ndarray(samples * np.float32((k + 1) / streams), "fltp", layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
            for packet in [*output.encode(frame), *output.encode(None)]:
                container.mux(packet)
    return path


def cut(path: Path, share: float) -> Path:
    """A copy of the file that ends early."""
    data = path.read_bytes()
    short = path.with_name(f"cut-{path.name}")
    short.write_bytes(data[: int(len(data) * share)])
    return short


def make_wav(folder: Path, channels: int = 2) -> Path:
    soundfile.write(folder / "a.wav", tone(channels=channels).T, RATE, subtype="FLOAT")
    return folder / "a.wav"


def make_flac(folder: Path, channels: int = 2) -> Path:
    soundfile.write(folder / "a.flac", tone(channels=channels).T, RATE, subtype="PCM_24")
    return folder / "a.flac"


def make_ogg(folder: Path, channels: int = 2) -> Path:
    soundfile.write(folder / "a.ogg", tone(channels=channels).T, RATE, format="OGG", subtype="VORBIS")
    return folder / "a.ogg"


def make_mp3(folder: Path, channels: int = 2) -> Path:
    return encode(folder / "a.mp3", tone(channels=channels), "libmp3lame")


def make_plain_mp3(folder: Path, channels: int = 2) -> Path:
    return encode(folder / "plain.mp3", tone(channels=channels), "libmp3lame", write_xing="0")


def make_m4a(folder: Path, channels: int = 2) -> Path:
    # Without noise substitution, whose noise is drawn anew from wherever decoding begins.
    return encode(folder / "a.m4a", tone(channels=channels), "aac", bits=128_000, aac_pns="0")


MAKERS = [make_wav, make_flac, make_ogg, make_mp3, make_plain_mp3, make_m4a]
every_format = pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__[5:])
Maker = Callable[..., Path]


# Reading


@every_format
@pytest.mark.parametrize("channels", [1, 2])
def test_read_gives_what_was_encoded(make: Maker, channels: int, tmp_path: Path) -> None:
    path = make(tmp_path, channels)
    sound = audio.read(path)
    about = audio.info(path)
    assert sound.sample_rate == about.sample_rate == RATE
    assert sound.samples.shape[0] == about.channels == channels
    assert sound.samples.dtype == torch.float32
    assert sound.duration == sound.samples.shape[-1] / RATE
    original = torch.from_numpy(tone(channels=channels))
    if make is make_plain_mp3:
        assert about.frames is None
        assert about.duration is None
        shift = 1105  # the delay of encoder and decoder, which only a LAME header could tell
        got = sound.samples[:, shift : shift + original.shape[1]]
    else:
        assert sound.samples.shape[1] == about.frames
        # An M4A's length is stored in milliseconds; LAME pads low rates by some samples more than it says.
        assert abs(sound.samples.shape[1] - original.shape[1]) <= (RATE / 1000 if make in (make_m4a, make_mp3) else 0)
        got = sound.samples[:, : original.shape[1]]
    lossless = make in (make_wav, make_flac)
    snr = 10 * torch.log10(original.square().mean() / (got - original[:, : got.shape[1]]).square().mean())
    assert snr > (100 if lossless else 10)
    if make is make_wav:
        assert torch.equal(got, original)


@every_format
def test_parts_equal_the_whole_to_the_sample(make: Maker, tmp_path: Path) -> None:
    path = make(tmp_path)
    whole = audio.read(path).samples
    for start, frames in [(0, 1), (1, 1000), (30_011, 4096), (whole.shape[1] - 77, 50), (50_000, None)]:
        part = audio.read(path, start=start / RATE, duration=None if frames is None else frames / RATE).samples
        expected = whole[:, start : None if frames is None else start + frames]
        assert torch.equal(part, expected), (start, frames)
    assert audio.read(path, start=2.9, duration=99).samples.shape[1] == whole.shape[1] - round(2.9 * RATE)


def test_parts_of_aac_with_substituted_noise_are_in_place(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.m4a", tone(), "aac")
    whole = audio.read(path).samples[:, 30_011:34_107]
    part = audio.read(path, start=30_011 / RATE, duration=4096 / RATE).samples
    assert part.shape == whole.shape
    assert (part - whole).square().mean() < 0.01 * whole.square().mean()


@every_format
@pytest.mark.parametrize("hop", [None, 7000, 1])
def test_blocks_cover_the_file(make: Maker, hop: int | None, tmp_path: Path) -> None:
    path = make(tmp_path)
    whole = audio.read(path).samples
    block = 10_000 if hop != 1 else whole.shape[1] - 3
    step = hop or block
    got = list(audio.blocks(path, block, hop=hop))
    for k, part in enumerate(got):
        assert torch.equal(part, whole[:, k * step : k * step + block]), k
        assert part.shape[1] == block or k == len(got) - 1
    assert (len(got) - 1) * step + got[-1].shape[1] == whole.shape[1]
    assert len(got) == 1 + math.ceil((whole.shape[1] - block) / step)


def test_blocks_decode_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_flac(tmp_path)
    reads: list[int] = []
    original = soundfile.SoundFile.read

    def counted(self: soundfile.SoundFile, frames: int = -1, **keywords: object) -> np.ndarray:
        reads.append(frames)
        return original(self, frames, **keywords)

    monkeypatch.setattr("pyrosep.audio.libsndfile.CHUNK", 5000)
    monkeypatch.setattr(soundfile.SoundFile, "read", counted)
    parts = audio.blocks(path, 5000)
    next(parts)
    assert reads == [5000]
    parts.close()  # type: ignore[attr-defined]


def test_streams_of_a_stem_file(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.stem.mp4", tone(1.0), "aac", streams=5)
    assert audio.info(path).streams == 5
    levels = [float(audio.read(path, stream=k).samples.square().mean().sqrt()) for k in range(5)]
    np.testing.assert_allclose(np.array(levels) / levels[4], np.arange(1, 6) / 5, rtol=0.05)
    with pytest.raises(ConfigurationError, match=r"5 audio streams.*stream 5"):
        audio.read(path, stream=5)
    with pytest.raises(ConfigurationError, match=r"1 audio stream,.*stream 1"):
        audio.info(make_wav(tmp_path), stream=1)
    with pytest.raises(ConfigurationError, match="stream -1"):
        audio.info(path, stream=-1)


def test_a_real_stem_file() -> None:
    package = importlib.util.find_spec("stempeg")  # without importing it, which needs ffmpeg
    assert package is not None
    path = next((Path(str(package.origin)).parent / "data").glob("*.stem.mp4"))
    assert audio.info(path).streams == 5
    mix, *stems = [audio.read(path, stream=k).samples for k in range(5)]
    assert mix.shape == (2, audio.info(path).frames)
    # A mastered mix is near the sum of its stems, not equal to it.
    assert (mix - torch.stack(stems).sum(0)).square().mean() < 0.1 * mix.square().mean()
    for k, stem in enumerate(stems):
        assert torch.equal(audio.read(path, stream=k + 1, start=2.0, duration=1.0).samples, stem[:, 88_200:132_300])


@every_format
def test_a_name_that_is_not_utf_8(make: Maker, tmp_path: Path) -> None:
    path = make(tmp_path)
    whole = audio.read(path).samples
    odd = path.rename(tmp_path / os.fsdecode(b"caf\xe9" + path.suffix.encode()))
    assert torch.equal(audio.read(odd).samples, whole)
    copy = tmp_path / os.fsdecode(b"copy \xe9.wav")
    audio.write(copy, whole, RATE)
    assert torch.equal(audio.read(copy).samples, whole)


def test_mono_and_resampling_on_reading(tmp_path: Path) -> None:
    path = make_wav(tmp_path)
    whole = torch.from_numpy(tone())
    sound = audio.read(path, mono=True)
    torch.testing.assert_close(sound.samples, whole.mean(0, keepdim=True))
    sound = audio.read(path, mono=True, sample_rate=16_000)
    assert sound.sample_rate == 16_000
    assert torch.equal(sound.samples, audio.resample(whole.mean(0, keepdim=True), RATE, 16_000))


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "DOUBLE", "IMA_ADPCM"])
def test_other_wav_encodings(subtype: str, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(channels=1).T, RATE, subtype=subtype)
    assert audio.read(tmp_path / "a.wav").samples.shape[0] == 1


def test_more_than_two_channels_pass_through(tmp_path: Path) -> None:
    audio.write(tmp_path / "a.wav", torch.from_numpy(tone(channels=6)), RATE)
    assert torch.equal(audio.read(tmp_path / "a.wav").samples, torch.from_numpy(tone(channels=6)))


def test_wav_of_unknown_length_is_no_error(tmp_path: Path) -> None:
    data = bytearray(make_wav(tmp_path).read_bytes())
    at = data.index(b"data") + 4
    data[4:8] = data[at : at + 4] = b"\xff" * 4  # as programs write that can't seek back
    (tmp_path / "piped.wav").write_bytes(data)
    assert torch.equal(audio.read(tmp_path / "piped.wav").samples, torch.from_numpy(tone()))


def test_big_wav_header_is_read(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone().T, RATE, format="RF64", subtype="FLOAT")
    assert torch.equal(audio.read(tmp_path / "a.wav").samples, torch.from_numpy(tone()))
    with pytest.raises(TruncatedAudioError, match="announces"):
        audio.read(cut(tmp_path / "a.wav", 0.7))


# Damage


@pytest.mark.parametrize("call", [audio.read, audio.info, lambda path: next(audio.blocks(path, 100))])
def test_missing_folder_and_empty(call: Callable[[Path], object], tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"no .*gone\.wav"):
        call(tmp_path / "gone.wav")
    with pytest.raises(NotAudioError, match="is a folder"):
        call(tmp_path)
    (tmp_path / "zero.mp3").touch()
    with pytest.raises(EmptyAudioError, match="0 bytes"):
        call(tmp_path / "zero.mp3")


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_header_without_samples(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, np.zeros((0, 2)), RATE)
    with pytest.raises(EmptyAudioError, match=r"not a single sample|0 bytes"):
        audio.read(path)


def test_mp4_with_a_stream_but_no_samples(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        container.add_stream("aac", rate=RATE, layout="mono")
        container.start_encoding()
    with pytest.raises((EmptyAudioError, NotAudioError)):
        audio.read(path)


@pytest.mark.parametrize("share", [0.0005, 0.3, 0.999])
@pytest.mark.parametrize("call", [audio.read, audio.info])
def test_truncated_wav(call: Callable[[Path], object], share: float, tmp_path: Path) -> None:
    with pytest.raises(TruncatedAudioError):
        call(cut(make_wav(tmp_path), share))


@pytest.mark.parametrize("make", [make_flac, make_mp3, make_m4a], ids=["flac", "mp3", "m4a"])
@pytest.mark.parametrize("share", [0.3, 0.8])
def test_truncated(make: Maker, share: float, tmp_path: Path) -> None:
    path = cut(make(tmp_path), share)
    with pytest.raises(TruncatedAudioError, match=r"cut|announces"):
        audio.read(path)
    with pytest.raises(TruncatedAudioError):
        list(audio.blocks(path, 5000))
    with pytest.raises(TruncatedAudioError):
        audio.read(path, start=2.8)


def test_truncated_m4a_with_its_index_first(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.m4a", tone(), "aac", movflags="faststart")
    audio.read(path)
    with pytest.raises(TruncatedAudioError):
        audio.read(cut(path, 0.6))


def test_m4a_whose_index_announces_more_than_there_is(tmp_path: Path) -> None:
    # The audio's own box lasts "until the end of the file", so that only decoding shows the loss.
    data = bytearray(encode(tmp_path / "a.m4a", tone(), "aac", movflags="faststart").read_bytes())
    at = data.index(b"mdat")
    data[at - 4 : at] = bytes(4)
    (tmp_path / "short.m4a").write_bytes(data[: int(len(data) * 0.6)])
    with pytest.raises(TruncatedAudioError, match="ends after"):
        audio.read(tmp_path / "short.m4a")


def test_cut_mp3_without_a_length_header_reads_as_shorter(tmp_path: Path) -> None:
    path = make_plain_mp3(tmp_path)
    whole, part = audio.read(path).samples, audio.read(cut(path, 0.5)).samples
    assert 0.4 * whole.shape[1] < part.shape[1] < 0.6 * whole.shape[1]


@pytest.mark.parametrize("options", [{}, {"q": "0"}, {"q": "9"}, {"abr": "1"}, {"write_xing": "0"}, {"reservoir": "0"}])
@pytest.mark.parametrize(("rate", "bits"), [(44_100, 128_000), (48_000, 320_000), (16_000, 24_000), (8_000, 8_000)])
@pytest.mark.parametrize("seconds", [0.03, 2.0])
def test_intact_mp3_gives_no_alarm(
    options: dict[str, str], rate: int, bits: int, seconds: float, tmp_path: Path
) -> None:
    quality = options.pop("q", None) if (options := dict(options)) else None
    extra = {"flags": "+qscale", "global_quality": str(118 * int(quality))} if quality else {}
    path = encode(
        tmp_path / "a.mp3", tone(seconds, 1, rate), "libmp3lame", rate=rate, bits=0 if quality else bits,
        **options, **extra,
    )  # fmt: skip
    whole = audio.read(path).samples
    assert whole.shape[1] >= round(seconds * rate)
    if "write_xing" not in options:
        assert audio.info(path).frames == whole.shape[1]
    tagged = path.with_name("tagged.mp3")
    tagged.write_bytes(b"ID3\x04\0\0\0\0\x02\x00" + bytes(256) + path.read_bytes() + b"TAG" + b"x" * 125)
    got = audio.read(tagged).samples
    # In a tiny file the tag leads the decoder to leave the encoder's padding in place.
    assert torch.equal(got[:, : whole.shape[1]], whole)
    assert got.shape == whole.shape or (seconds < 1 and got.shape[1] - whole.shape[1] < 2 * 1152)


@pytest.mark.parametrize("make", [make_mp3, make_m4a], ids=["mp3", "m4a"])
def test_a_title_that_is_not_utf_8_is_no_error(make: Maker, tmp_path: Path) -> None:
    path = make(tmp_path)
    whole = audio.read(path).samples
    data = path.read_bytes()
    if make is make_mp3:
        # An ID3v2.3 tag whose title claims UTF-8 (encoding 3), and is Latin-1.
        frame = b"TIT2" + struct.pack(">IH", 5, 0) + b"\x03caf\xe9"
        titled = b"ID3\x03\0\0" + bytes([0, 0, 0, len(frame)]) + frame + data[_id3_bytes(data) :]
    else:
        # The name of the program that wrote the file, which the muxer adds, is as long as before.
        at = data.index(b"Lavf")
        titled = data[:at] + b"caf\xe9" + data[at + 4 :]
    (tmp_path / f"titled{path.suffix}").write_bytes(titled)
    assert torch.equal(audio.read(tmp_path / f"titled{path.suffix}").samples, whole)


def _id3_bytes(data: bytes) -> int:
    """Bytes of the ID3v2 tag that a file begins with."""
    if not data.startswith(b"ID3"):
        return 0
    return 10 + sum((byte & 0x7F) << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0), strict=True))


def test_joined_mp3_files_announce_no_length(tmp_path: Path) -> None:
    data = make_mp3(tmp_path).read_bytes()
    joined = tmp_path / "joined.mp3"
    joined.write_bytes(data * 8)
    assert mp3_samples(joined) is None
    whole = audio.read(joined).samples
    assert whole.shape[1] > 20 * RATE
    assert torch.equal(audio.read(joined, start=15).samples, whole[:, 15 * RATE :])


def test_damage_in_the_middle_of_a_file(tmp_path: Path) -> None:
    data = bytearray(encode(tmp_path / "a.m4a", tone(), "aac", movflags="faststart").read_bytes())
    middle = (data.index(b"mdat") + len(data)) // 2
    data[middle : middle + 3000] = b"\xff" * 3000
    (tmp_path / "damaged.m4a").write_bytes(data)
    with pytest.raises(AudioError, match=r"damaged.*at 1\.\d+ s"):
        audio.read(tmp_path / "damaged.m4a")


@pytest.mark.parametrize("name", ["a.wav", "a.mp3", "a.m4a", "a.flac", "a.txt", "a.m3u8"])
def test_text_and_noise_are_not_audio(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text("#EXTM3U\nnot audio at all\n" * 50)
    with pytest.raises(NotAudioError, match=r"can't be read as audio|no audio stream"):
        audio.read(path)
    path.write_bytes(np.random.default_rng(0).bytes(20_000))
    with pytest.raises(AudioError):
        audio.read(path)


def test_video_without_sound(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=10)
        video.width = video.height = 32
        video.pix_fmt = "yuv420p"
        picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")
        for packet in [*video.encode(picture), *video.encode(None)]:
            container.mux(packet)
    with pytest.raises(NotAudioError, match="no audio stream"):
        audio.read(path)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_samples_that_are_not_finite(bad: float, tmp_path: Path) -> None:
    samples = tone()
    samples[1, 11_025] = samples[0, 20_000] = bad
    soundfile.write(tmp_path / "a.wav", samples.T, RATE, subtype="FLOAT")
    with pytest.raises(NonFiniteAudioError, match=r"2 samples.*first at 0\.500000 s"):
        audio.read(tmp_path / "a.wav")
    with pytest.raises(NonFiniteAudioError, match=r"first at 0\.500000 s"):
        list(audio.blocks(tmp_path / "a.wav", 1000))
    with pytest.raises(NonFiniteAudioError, match=r"1 samples.*first at 0\.907029 s"):
        audio.read(tmp_path / "a.wav", start=0.8)
    audio.read(tmp_path / "a.wav", duration=0.4)


def test_sample_rate_zero_or_absent(tmp_path: Path) -> None:
    data = bytearray(make_wav(tmp_path).read_bytes())
    at = data.index(b"fmt ")
    zero = data.copy()
    zero[at + 12 : at + 16] = bytes(4)
    (tmp_path / "zero.wav").write_bytes(zero)
    with pytest.raises(SampleRateError, match="0 Hz"):
        audio.read(tmp_path / "zero.wav")
    data[at : at + 4] = b"junk"
    (tmp_path / "none.wav").write_bytes(data)
    with pytest.raises(SampleRateError, match="names no sample rate"):
        audio.read(tmp_path / "none.wav")


@every_format
def test_start_past_the_end(make: Maker, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="start earlier"):
        audio.read(make(tmp_path), start=60)


@pytest.mark.parametrize(
    "options", [{"start": -1}, {"start": math.nan}, {"duration": 0}, {"duration": -1}, {"duration": math.nan}]
)
def test_parts_out_of_range(options: dict[str, float], tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="expected a"):
        audio.read(make_wav(tmp_path), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("block", "hop"), [(0, None), (10, 0), (10, 11)])
def test_blocks_out_of_range(block: int, hop: int | None, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="expected a"):
        audio.blocks(make_wav(tmp_path), block, hop=hop)


# Writing


@pytest.mark.parametrize(
    ("suffix", "encoding", "step"),
    [("wav", "float32", 0), ("wav", "pcm16", 2**-15), ("wav", "pcm24", 2**-23), ("flac", "pcm16", 2**-15),
     ("flac", "pcm24", 2**-23)],
)  # fmt: skip
def test_writing_there_and_back(suffix: str, encoding: str, step: float, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    samples = torch.from_numpy(tone()).clone()
    samples[0, :3] = torch.tensor([1.0, -1.0, 1 - 2**-15])
    audio.write(path, samples, RATE, encoding)
    first = audio.read(path).samples
    assert (first - samples).abs().max() <= step  # full scale 1.0 becomes the largest integer
    audio.write(path, first, RATE, encoding)
    assert torch.equal(audio.read(path).samples, first)
    assert [child.name for child in tmp_path.iterdir()] == [path.name]


def test_writer_streams_blocks(tmp_path: Path) -> None:
    samples = torch.from_numpy(tone())
    with audio.Writer(tmp_path / "a.wav", RATE, 2) as writer:
        for part in samples.split(9999, -1):
            writer.write(part)
        assert not (tmp_path / "a.wav").exists()
    assert torch.equal(audio.read(tmp_path / "a.wav").samples, samples)


def test_float_wav_keeps_samples_beyond_full_scale(tmp_path: Path) -> None:
    samples = torch.tensor([[3.5, -2.0, 1e-30, 0.1]])
    audio.write(tmp_path / "a.wav", samples, RATE)
    assert torch.equal(audio.read(tmp_path / "a.wav").samples, samples)


def test_clipping_is_counted_once(tmp_path: Path) -> None:
    samples = torch.tensor([[1.5, -1.5, 1.0, -1.0], [0.0, 2.0, 0.5, 0.0]])
    with pytest.warns(audio.ClippingWarning, match="6 samples") as caught:  # noqa: PT031, SIM117
        with audio.Writer(tmp_path / "a.wav", RATE, 2, "pcm16") as writer:
            writer.write(samples)
            writer.write(samples)
    assert len(caught) == 1
    back = audio.read(tmp_path / "a.wav").samples[:, :4]
    assert (back - samples.clamp(-1, 1)).abs().max() <= 2**-15


def test_an_error_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(b"older")
    with pytest.raises(KeyboardInterrupt), audio.Writer(path, RATE, 1) as writer:  # noqa: PT012
        writer.write(torch.zeros(1, 10))
        raise KeyboardInterrupt
    assert path.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(EmptyAudioError, match="not a single sample"), audio.Writer(path, RATE, 1):
        pass
    assert list(tmp_path.iterdir()) == [path]


def test_writing_what_can_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = torch.zeros(2, 100)
    with pytest.raises(ConfigurationError, match=r"\.flac files can be encoded as pcm24, pcm16"):
        audio.write(tmp_path / "a.flac", good, RATE, "float32")
    with pytest.raises(ConfigurationError, match=r"ending in \.wav or \.flac"):
        audio.write(tmp_path / "a.mp3", good, RATE)
    (tmp_path / "b.wav").mkdir()
    with pytest.raises(ConfigurationError, match="is a folder"):
        audio.write(tmp_path / "b.wav", good, RATE)
    with pytest.raises(MissingFileError, match="no folder"):
        audio.write(tmp_path / "none" / "a.wav", good, RATE)
    for rate in (0, -1, 0.5, None, "44100", math.nan, math.inf, True):
        with pytest.raises(SampleRateError, match="positive integer"):
            audio.write(tmp_path / "a.wav", good, rate)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"\(channel, time\)"):
        audio.write(tmp_path / "a.wav", good[0], RATE)
    with pytest.raises(
        ShapeError, match=r"got shape \(2205, 2\), which seems to be \(time, channel\), .* exchange the axes"
    ):
        audio.write(tmp_path / "a.wav", torch.zeros(2205, 2), RATE)
    with pytest.raises(ShapeError, match=r"\(3, time\)"), audio.Writer(tmp_path / "a.wav", RATE, 3) as writer:
        writer.write(good)
    with pytest.raises(ConfigurationError, match="at least 1 channel"):
        audio.Writer(tmp_path / "a.wav", RATE, 0)
    with pytest.raises(ConfigurationError, match="9 channels"):
        audio.write(tmp_path / "a.flac", torch.zeros(9, 10), RATE, "pcm16")
    with pytest.raises(NonFiniteAudioError, match=r"1 samples.*first at 0\.002268 s"):
        audio.write(tmp_path / "a.wav", torch.zeros(1, 100).index_fill(1, torch.tensor(50), math.nan), RATE)
    with pytest.raises(ConfigurationError, match="inside its `with` block"):
        audio.Writer(tmp_path / "a.wav", RATE, 2).write(good)
    monkeypatch.setattr("pyrosep.audio.writer.WAV_BYTES", 500)
    with pytest.raises(OSError, match="4 GiB"):
        audio.write(tmp_path / "a.wav", good, RATE)
    assert [child.name for child in tmp_path.iterdir()] == ["b.wav"]


def test_each_format_has_an_encoding_of_its_own(tmp_path: Path) -> None:
    samples = torch.from_numpy(tone())
    audio.write(tmp_path / "a.flac", samples, RATE)
    assert (audio.read(tmp_path / "a.flac").samples - samples).abs().max() <= 2**-24
    assert soundfile.info(tmp_path / "a.flac").subtype == "PCM_24"
    audio.write(tmp_path / "a.wav", samples, RATE)
    assert soundfile.info(tmp_path / "a.wav").subtype == "FLOAT"


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_the_same_samples_give_the_same_file(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """libsndfile puts the clock into float WAV files."""
    samples = torch.from_numpy(tone())
    audio.write(tmp_path / f"a.{suffix}", samples, RATE)
    time.sleep(1.1)
    audio.write(tmp_path / f"b.{suffix}", samples, RATE)
    assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()
    assert audio.digest(tmp_path / f"a.{suffix}") == audio.digest(tmp_path / f"b.{suffix}")


@pytest.mark.parametrize("name", ["x" * 251, "é" * 125, "🎵" * 62])
def test_the_longest_names_can_be_written(name: str, tmp_path: Path) -> None:
    samples = torch.from_numpy(tone(0.1))
    with audio.Writer(tmp_path / f"{name}.wav", RATE, 2) as one:
        one.write(samples)
        with audio.Writer(tmp_path / f"{name[:-1]}y.wav", RATE, 2) as other:  # whose beginning is the same
            other.write(2 * samples)
    assert torch.equal(audio.read(tmp_path / f"{name}.wav").samples, samples)
    assert torch.equal(audio.read(tmp_path / f"{name[:-1]}y.wav").samples, 2 * samples)


FULL = """
import resource, signal, sys, torch
from pyrosep import audio
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    with audio.Writer(sys.argv[1], 8000, 1, sys.argv[2]) as writer:
        for _ in range(100):
            writer.write(torch.randn(1, 1000).clamp(-1, 1))
except OSError as error:
    print(error)
"""


@pytest.mark.parametrize(("suffix", "encoding"), [("wav", "float32"), ("wav", "pcm16"), ("flac", "pcm24")])
def test_a_full_disk_leaves_what_was_there(suffix: str, encoding: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(b"older")
    ended = subprocess.run([sys.executable, "-c", FULL, str(path), encoding], capture_output=True, text=True)
    assert "is the disk full?" in ended.stdout, ended.stderr
    assert path.read_bytes() == b"older"
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_can_only_be_read(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir(mode=0o500)
    with pytest.raises(PermissionError):
        audio.write(tmp_path / "in" / "a.wav", torch.from_numpy(tone()), RATE)


# Types of samples


TYPES = {
    "float32": 1.0, "float64": 1.0, "float16": 1.0, ">f4": 1.0,
    "int16": 2**15, "int32": 2**31, "int8": 2**7, ">i2": 2**15,
}  # fmt: skip


@pytest.mark.parametrize("kind", TYPES)
def test_arrays_of_any_type_can_be_written_and_resampled(kind: str, tmp_path: Path) -> None:
    values = np.rint(tone() * 2**7) / 2**7
    given = (values * TYPES[kind]).astype(kind)
    audio.write(tmp_path / "a.wav", given, RATE)
    assert torch.equal(audio.read(tmp_path / "a.wav").samples, torch.from_numpy(values).float())
    with audio.Writer(tmp_path / "b.wav", RATE, 2, "pcm16") as writer:
        writer.write(given)
    assert torch.equal(audio.read(tmp_path / "b.wav").samples, torch.from_numpy(values).float())
    expected = audio.resample(torch.from_numpy(values).float(), RATE, 16_000)
    assert (audio.resample(given, RATE, 16_000) - expected).abs().max() < 1e-6
    assert (audio.resample(given[:, ::-1], RATE, RATE) - torch.from_numpy(values).float().flip(-1)).abs().max() < 1e-7


def test_bytes_count_from_their_middle() -> None:
    assert audio.resample(np.array([0, 128, 192], np.uint8), 8000, 8000).tolist() == [-1.0, 0.0, 0.5]


@pytest.mark.parametrize("kind", ["int64", "bool", "complex64", "object", "<U1"])
def test_types_that_are_no_sounds(kind: str, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match="expected samples as floating-point numbers, or as integers of 8, 16 or"
    ):
        audio.write(tmp_path / "a.wav", np.zeros((2, 10)).astype(kind), RATE)


# Resampling


def torchaudio_is_there() -> bool:
    try:
        import torchaudio  # noqa: F401
    except Exception:  # a mismatched pair raises OSError or AttributeError as well as ImportError
        return False
    return True


needs_torchaudio = pytest.mark.skipif(
    not torchaudio_is_there(), reason="torchaudio can't be imported beside this torch"
)


@pytest.mark.parametrize(("rate", "other"), [(44_100, 14_700), (44_100, 16_000), (16_000, 44_100), (48_000, 44_100)])
def test_a_sine_survives_there_and_back(rate: int, other: int) -> None:
    time = torch.arange(2 * rate + 1, dtype=torch.float64) / rate
    low = min(rate, other)
    for share, db in ((0.25, 100), (0.35, 78)):  # nearer to the Nyquist frequency a thousandth of a dB is lost
        sine = torch.sin(2 * math.pi * share * low * time).to(torch.float32)
        there = audio.resample(sine, rate, other)
        assert there.shape[-1] == math.ceil(sine.shape[-1] * other / rate)
        back = audio.resample(there, other, rate)[: sine.shape[-1]]
        middle = slice(rate // 2, 3 * rate // 2)
        error = (back - sine)[middle].square().mean()
        assert 10 * torch.log10(sine[middle].square().mean() / error) > db
        # The resampled sine itself is the sine at the new times: no delay.
        times = torch.arange(there.shape[-1], dtype=torch.float64) / other
        expected = torch.sin(2 * math.pi * share * low * times).to(torch.float32)
        assert (there - expected)[other // 2 : 3 * other // 2].abs().max() < 1e-4


def test_nothing_above_the_new_nyquist_frequency_is_left() -> None:
    time = torch.arange(44_100, dtype=torch.float64) / 44_100
    high = torch.sin(2 * math.pi * 8100 * time).to(torch.float32)
    assert audio.resample(high, 44_100, 16_000)[2000:-2000].abs().max() < 1e-4


@pytest.mark.parametrize("frames", [0, 1, 2, 99, 100, 101])
def test_resampled_length(frames: int) -> None:
    for source, target in [(3, 2), (2, 3), (44_100, 16_000), (1, 7)]:
        got = audio.resample(torch.ones(2, 3, frames), source, target)
        assert got.shape == (2, 3, math.ceil(frames * target / source))


def test_resampling_keeps_type_device_and_equal_rates() -> None:
    samples = torch.randn(2, 300, dtype=torch.float64)
    assert audio.resample(samples, 8000, 8000) is samples
    assert audio.resample(samples, 8000, 6000).dtype == torch.float64
    assert audio.resample(samples.half(), 8000, 6000).dtype == torch.float16
    with pytest.raises(ConfigurationError, match=r"no gradient; use audio\.differentiable_resample"):
        audio.resample(samples.requires_grad_(), 8000, 6000)


@needs_torchaudio
def test_resampling_inside_of_a_model_keeps_type_and_gradient() -> None:
    samples = torch.randn(2, 300, dtype=torch.float64, requires_grad=True)
    assert audio.differentiable_resample(samples, 8000, 8000) is samples
    with torch.inference_mode():
        audio.differentiable_resample(samples, 8000, 6000)
    got = audio.differentiable_resample(samples, 8000, 6000)
    assert got.dtype == torch.float64
    got.sum().backward()
    assert samples.grad is not None


@needs_torchaudio
def test_both_resamplers_agree_on_a_band_limited_signal() -> None:
    time = torch.arange(44_100, dtype=torch.float64) / 44_100
    signal = sum(torch.sin(2 * math.pi * f * time + f) for f in (100, 1000, 3000, 5000))
    recording, model = (
        resampler(signal, 44_100, 16_000) for resampler in (audio.resample, audio.differentiable_resample)
    )
    assert (recording - model)[2000:-2000].abs().max() < 1e-4


@pytest.mark.parametrize(
    ("rate", "other"), [(22_254, 44_100), (43_796, 16_000), (44_100, 44_099), (4000, 384_000), (383_999, 16_001)]
)
def test_any_ratio_of_rates(rate: int, other: int) -> None:
    """Rates without a common divisor, of old machines and odd converters: the sine at the new times comes out."""
    time = torch.arange(rate, dtype=torch.float64) / rate
    sine = torch.sin(2 * math.pi * 1000 * time)
    found = audio.resample(sine, rate, other)
    expected = torch.sin(2 * math.pi * 1000 * torch.arange(other, dtype=torch.float64) / other)
    assert found.shape == expected.shape
    assert (found - expected)[other // 4 : 3 * other // 4].abs().max() < 1e-4


@pytest.mark.parametrize("rate", [4000, 11_127, 22_254, 22_255, 44_056, 44_101, 96_001, 383_999, 384_000])
@pytest.mark.parametrize("other", [16_000, 44_100])
def test_rates_are_set_up_at_once(rate: int, other: int) -> None:
    samples = torch.zeros(1, rate // 10)
    start = time.process_time()
    audio.resample(samples, rate, other)
    audio.resample(samples[:, : other // 10], other, rate)
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    "rates", [(0, 1), (1, -1), (1.5, 1), (44_100, 16_000.5), (True, 2), (None, 1), ("a", 1), (math.nan, 1)]
)
def test_rates_out_of_range(rates: tuple[int, int]) -> None:
    with pytest.raises(SampleRateError, match="positive integer"):
        audio.resample(torch.zeros(10), *rates)


def test_inside_of_a_model_rates_need_a_common_divisor() -> None:
    with pytest.raises(SampleRateError, match="greatest common divisor, 1 Hz"):
        audio.differentiable_resample(torch.zeros(10), 44_100, 44_099)


def test_without_torchaudio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchaudio.transforms", None)
    with pytest.raises(MissingDependencyError, match=r"differentiable_resample needs torchaudio.*torchaudio==2\.11"):
        audio.differentiable_resample(torch.zeros(10), 13, 11)
    assert audio.resample(torch.zeros(13), 13, 11).shape == (11,)  # recordings need none


def test_import_is_light() -> None:
    code = "import sys, pyrosep.audio; print([m for m in ('torchaudio', 'soundfile', 'av') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_mp3_header_by_the_books(tmp_path: Path) -> None:
    # A VBRI header (Fraunhofer): 32 bytes after the frame header, then bytes at 10 and frames at 14.
    head = b"\xff\xfb\x90\x00" + bytes(32) + b"VBRI" + struct.pack(">HHHII", 1, 0, 75, 40_000, 100)
    (tmp_path / "a.mp3").write_bytes(head + bytes(40_000))
    assert mp3_samples(tmp_path / "a.mp3") == 100 * 1152
