"""Containers and encodings: what is whole, joined, cut off, of unknown length or no audio, in each of them."""

from __future__ import annotations

import contextlib
import math
import os
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch

from pyrosep import audio
from pyrosep.errors import AudioError, EmptyAudioError, NotAudioError, SampleRateError, TruncatedAudioError

RATE = 44_100


def tone(seconds: float = 1.0, channels: int = 2, rate: int = RATE) -> np.ndarray:
    """Two tones and a little noise, `(channel, time)`, at multiples of 2**-15, of an odd number of samples."""
    time = np.arange(2 * round(seconds * rate / 2) + 123) / rate
    noise = np.random.default_rng(0).standard_normal((channels, len(time)))
    waves = np.stack([np.sin(2 * math.pi * 440 * (k + 1) * time) for k in range(channels)])
    return (np.rint((0.3 * waves + 0.02 * noise) * 2**15) / 2**15).astype(np.float32)


def encode(
    path: Path, samples: np.ndarray, codec: str, rate: int = RATE, form: str | None = None, **muxer: str
) -> Path:
    """Encode by PyAV, AAC without noise substitution, whose noise is drawn anew from wherever decoding begins."""
    layout = "stereo" if len(samples) == 2 else "mono"
    with av.open(str(path), "w", format=form, options=muxer) as container:
        options = {"aac_pns": "0"} if codec == "aac" else {}
        stream = container.add_stream(codec, rate=rate, layout=layout, options=options)
        if codec == "wavpack":
            stream.format = "s16p"
        if codec.startswith("wma"):
            stream.bit_rate = 128_000
        frame = av.AudioFrame.from_ndarray(samples, "fltp", layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return path


def by_soundfile(form: str, subtype: str = "PCM_16", **options: str) -> Callable[[Path, np.ndarray, int], Path]:
    def make(path: Path, samples: np.ndarray, rate: int = RATE) -> Path:
        soundfile.write(path, samples.T, rate, format=form, subtype=subtype, **options)
        return path

    return make


def by_av(codec: str, form: str | None = None, **muxer: str) -> Callable[[Path, np.ndarray, int], Path]:
    def make(path: Path, samples: np.ndarray, rate: int = RATE) -> Path:
        return encode(path, samples, codec, rate, form, **muxer)

    return make


#: How files of each name are made. The lossless ones come first.
LOSSLESS = {
    "a.wav": by_soundfile("WAV"),
    "big-endian.wav": by_soundfile("WAV", endian="BIG"),
    "a.rf64": by_soundfile("RF64"),
    "extensible.wav": by_soundfile("WAVEX", "PCM_24"),
    "a.aiff": by_soundfile("AIFF"),
    "a.aif": by_soundfile("AIFF", "PCM_24"),
    "a.aifc": by_soundfile("AIFF", endian="LITTLE"),
    "a.au": by_soundfile("AU"),
    "little-endian.au": by_soundfile("AU", endian="LITTLE"),
    "a.caf": by_soundfile("CAF"),
    "a.w64": by_soundfile("W64"),
    "a.flac": by_soundfile("FLAC"),
    "a.wv": by_av("wavpack"),
    "flac.mkv": by_av("flac"),
    "alac.m4a": by_av("alac"),
    "alac.caf": by_soundfile("CAF", "ALAC_16"),
}
LOSSY = {
    "a.ogg": by_soundfile("OGG", "VORBIS"),
    "a.oga": by_soundfile("OGG", "VORBIS"),
    "a.opus": by_soundfile("OGG", "OPUS"),
    "a.webm": by_av("libopus"),
    "live.webm": by_av("libopus", live="1"),
    "a.mka": by_av("libopus", "matroska"),
    "a.m4a": by_av("aac"),
    "a.m4b": by_av("aac", "mp4"),
    "a.mp4": by_av("aac"),
    "a.mov": by_av("aac"),
    "a.aac": by_av("aac", "adts"),
    "a.mp3": by_av("libmp3lame"),
    "a.mp2": by_av("mp2"),
    "a.wma": by_av("wmav2"),
}
MAKERS = LOSSLESS | LOSSY
#: Opus is always of 48 kHz.
RATES = dict.fromkeys(["a.opus", "a.webm", "live.webm", "a.mka"], 48_000)
#: What announces neither its length nor that of its pieces, so that a cut can't be noticed.
SILENT = ("a.aac", "a.mp2")
every_file = pytest.mark.parametrize("name", MAKERS)


def made(folder: Path, name: str, seconds: float = 1.0, channels: int = 2, rate: int | None = None) -> Path:
    rate = rate or RATES.get(name, RATE)
    return MAKERS[name](folder / name, tone(seconds, channels, rate), rate)


def test_every_suffix_is_tried() -> None:
    assert {Path(name).suffix for name in MAKERS} == set(audio.SUFFIXES)


@every_file
@pytest.mark.parametrize("channels", [1, 2])
def test_whole_files(name: str, channels: int, tmp_path: Path) -> None:
    path = made(tmp_path, name, channels=channels)
    about, sound = audio.info(path), audio.read(path)
    rate = RATES.get(name, RATE)
    assert about.sample_rate == sound.sample_rate == rate
    assert about.channels == sound.samples.shape[0] == channels
    assert about.frames in (None, sound.samples.shape[1])
    assert audio.count(path) == sound.samples.shape[1]
    expected = torch.from_numpy(tone(channels=channels, rate=rate))
    if name in LOSSLESS:
        assert about.frames is not None or name.endswith(".mkv")
        assert torch.equal(sound.samples, expected)
    else:
        # Where no length is kept, the encoder's delay and padding stay.
        most = 4000 if about.frames is None else 0
        assert abs(sound.samples.shape[1] - expected.shape[1]) <= most
        assert sound.samples.square().mean() == pytest.approx(float(expected.square().mean()), rel=0.2)


@every_file
def test_parts_equal_the_whole(name: str, tmp_path: Path) -> None:
    path = made(tmp_path, name, 2.0)
    sound = audio.read(path)
    whole, rate = sound.samples, sound.sample_rate
    tolerance = (
        1e-3 if name in ("a.mp2", "a.wma") or RATES.get(name) else 0
    )  # their decoders remember what is long past
    for start, frames in [(1, 1000), (40_011, 4096), (whole.shape[1] - 77, 50)]:
        part = audio.read(path, start=start / rate, duration=frames / rate).samples
        assert part.shape == (2, frames)
        assert (part - whole[:, start : start + frames]).abs().max() <= tolerance, start
    assert torch.equal(torch.cat(list(audio.blocks(path, 9999)), -1), whole)


# Joined


@every_file
def test_joined_files_are_read_as_one(name: str, tmp_path: Path) -> None:
    path = made(tmp_path, name)
    joined = tmp_path / f"joined-{name}"
    joined.write_bytes(path.read_bytes() * 3)
    part = audio.read(path).samples
    whole = audio.read(joined).samples
    if name in ("a.mp3", "a.mp2", "a.aac"):  # streams of frames, whose decoder goes on over the joints
        assert abs(whole.shape[1] - 3 * part.shape[1]) <= 3 * 3 * 1152
    else:
        assert whole.shape[1] == 3 * part.shape[1]
        assert (whole - part.repeat(1, 3)).abs().max() <= (0 if name in LOSSLESS else 1e-6)
    assert audio.info(joined).frames in (None, whole.shape[1])
    assert torch.equal(torch.cat(list(audio.blocks(joined, 9999)), -1), whole)
    rate = audio.info(joined).sample_rate
    for start in (0, 50_000, 100_000):
        cut = audio.read(joined, start=start / rate, duration=0.1).samples
        assert (cut - whole[:, start : start + cut.shape[1]]).abs().max() <= (0 if name in LOSSLESS else 1e-3)


@pytest.mark.parametrize("name", ["a.ogg", "a.flac", "a.wav", "a.m4a"])
def test_joined_files_must_be_alike(name: str, tmp_path: Path) -> None:
    first = made(tmp_path, name).read_bytes()
    second = made(tmp_path, name, rate=32_000).read_bytes()
    (tmp_path / name).write_bytes(first + second)
    with pytest.raises(SampleRateError, match=r"changes its sample rate from 44100 to 32000 Hz on the way"):
        audio.info(tmp_path / name)
    (tmp_path / name).write_bytes(first + made(tmp_path, name, channels=1).read_bytes())
    with pytest.raises(AudioError, match="changes from 2 to 1 channels on the way"):
        audio.read(tmp_path / name)


@pytest.mark.parametrize("name", ["a.ogg", "a.flac", "a.wav", "a.aiff", "a.wv", "a.m4a"])
def test_a_joined_file_that_is_cut(name: str, tmp_path: Path) -> None:
    data = made(tmp_path, name).read_bytes()
    (tmp_path / name).write_bytes(data + data[: len(data) // 2])
    with pytest.raises(TruncatedAudioError):
        audio.read(tmp_path / name)


@pytest.mark.parametrize("name", ["a.ogg", "a.flac", "a.wav", "a.aiff", "a.wv", "a.mp3", "a.webm"])
def test_tags_behind_a_file_are_no_file(name: str, tmp_path: Path) -> None:
    path = made(tmp_path, name)
    whole, data = audio.read(path).samples, path.read_bytes()
    path.write_bytes(data + b"TAG" + b"a title".ljust(125, b"\0"))
    assert torch.equal(audio.read(path).samples, whole)
    assert audio.info(path).frames in (None, whole.shape[1])


# Cut off


@pytest.mark.parametrize("name", [name for name in MAKERS if name not in SILENT])
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_files_that_are_cut_off(name: str, share: float, tmp_path: Path) -> None:
    path = made(tmp_path, name)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data)) | 1])
    with pytest.raises(TruncatedAudioError, match=r"cut off"):
        audio.read(path)
    with pytest.raises(TruncatedAudioError):
        list(audio.blocks(path, 5000))


@pytest.mark.parametrize("name", [*SILENT, "a.wma"])
def test_lengths_are_not_guessed(name: str, tmp_path: Path) -> None:
    """Three loud seconds tell nothing about the bit rate of four silent ones."""
    loud = tone(3.0)
    MAKERS[name](tmp_path / name, np.concatenate([loud, np.zeros((2, 4 * RATE), np.float32)], -1), RATE)
    assert audio.info(tmp_path / name).frames is None
    sound = audio.read(tmp_path / name)
    assert sound.duration > 6.95
    assert sound.samples[:, : 3 * RATE].square().mean() > 0.03
    assert sound.samples[:, 4 * RATE :].square().mean() < 1e-6
    assert audio.read(tmp_path / name, start=5).duration == pytest.approx(sound.duration - 5, abs=1e-3)


# Of unknown length


def test_wav_whose_size_was_never_written(tmp_path: Path) -> None:
    data = bytearray(made(tmp_path, "a.wav").read_bytes())
    at = data.index(b"data") + 4
    for riff in (b"\0\0\0\0", bytes(data[4:8]), b"\xff\xff\xff\xff"):
        for size in (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xf0\xff\xff\x7f"):
            data[4:8], data[at : at + 4] = riff, size
            (tmp_path / "piped.wav").write_bytes(data)
            assert torch.equal(audio.read(tmp_path / "piped.wav").samples, torch.from_numpy(tone()))


def test_wav_without_a_sample_but_with_a_title(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros((0, 2)), RATE)
    data = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "a.wav").write_bytes(
        data + b"LIST" + struct.pack("<I", 16) + b"INFOINAM" + struct.pack("<I", 4) + b"abc\0"
    )
    with pytest.raises(EmptyAudioError, match="not a single sample"):
        audio.read(tmp_path / "a.wav")


def test_flac_written_to_a_pipe(tmp_path: Path) -> None:
    data = bytearray(made(tmp_path, "a.flac", 2.0).read_bytes())
    data[21] &= 0xF0  # the number of samples, in 36 bits
    data[22:26] = bytes(4)
    data[26:42] = bytes(16)  # and their digest
    path = tmp_path / "piped.flac"
    path.write_bytes(data)
    assert audio.info(path).frames is None
    assert torch.equal(audio.read(path).samples, torch.from_numpy(tone(2.0)))
    assert torch.equal(audio.read(path, start=1.5).samples, torch.from_numpy(tone(2.0))[:, 66_150:])
    path.write_bytes(data * 2)
    assert torch.equal(audio.read(path).samples, torch.from_numpy(tone(2.0)).repeat(1, 2))
    start = 66_150 + 88_323
    assert torch.equal(audio.read(path, start=start / RATE).samples, torch.from_numpy(tone(2.0))[:, 66_150:])
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(TruncatedAudioError, match="cut off or damaged"):
        audio.read(path)


@pytest.mark.parametrize(
    ("name", "sign", "size"),
    [("a.au", b".snd", b"\xff" * 4), ("a.caf", b"data", b"\xff" * 8), ("a.aiff", b"SSND", bytes(4))],
)
def test_other_containers_written_to_a_pipe(name: str, sign: bytes, size: bytes, tmp_path: Path) -> None:
    data = bytearray(made(tmp_path, name).read_bytes())
    at = data.index(sign) + (8 if name == "a.au" else 4)
    data[at : at + len(size)] = size
    (tmp_path / name).write_bytes(data)
    assert torch.equal(audio.read(tmp_path / name).samples, torch.from_numpy(tone()))


@pytest.mark.parametrize("name", ["a.wav", "a.au", "a.caf", "a.aiff", "a.w64", "a.rf64", "a.ogg", "a.flac"])
@pytest.mark.parametrize("fill", [b"\0", b"\xff"])
def test_sizes_that_lead_nowhere_come_to_an_end(name: str, fill: bytes, tmp_path: Path) -> None:
    """Numbers of a header that are all nothing, or the most that there is, at every place of it."""
    data = made(tmp_path, name).read_bytes()[:600]
    path = tmp_path / name
    for place in range(4, 80, 4):
        for count in (4, 8, len(data)):
            path.write_bytes((data[:place] + fill * count + data[place + count :])[: len(data)])
            with contextlib.suppress(AudioError, OSError):
                audio.info(path)


# Encodings of WAV


@pytest.mark.parametrize("subtype", ["GSM610", "G721_32", "IMA_ADPCM", "MS_ADPCM", "ULAW", "ALAW", "PCM_U8", "DOUBLE"])
def test_encodings_of_wav(subtype: str, tmp_path: Path) -> None:
    expected = torch.from_numpy(tone(channels=1))
    soundfile.write(tmp_path / "a.wav", expected.T.numpy(), RATE, subtype=subtype)
    whole = audio.read(tmp_path / "a.wav").samples
    assert whole.shape[1] == audio.info(tmp_path / "a.wav").frames
    assert 0 <= whole.shape[1] - expected.shape[1] < 2048  # the last block is padded
    error = (whole[:, : expected.shape[1]] - expected).square().mean() / expected.square().mean()
    assert error < 0.2
    assert torch.equal(audio.read(tmp_path / "a.wav", start=30_011 / RATE).samples, whole[:, 30_011:])


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"])
def test_big_endian_wav(subtype: str, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "big.wav", tone().T, RATE, subtype=subtype, endian="BIG")
    soundfile.write(tmp_path / "little.wav", tone().T, RATE, subtype=subtype)
    assert (tmp_path / "big.wav").read_bytes().startswith(b"RIFX")
    assert torch.equal(audio.read(tmp_path / "big.wav").samples, audio.read(tmp_path / "little.wav").samples)
    assert audio.info(tmp_path / "big.wav") == audio.info(tmp_path / "little.wav")


def test_mp3_inside_of_wav(tmp_path: Path) -> None:
    encode(tmp_path / "a.wav", tone(2.0), "libmp3lame")
    whole = audio.read(tmp_path / "a.wav").samples
    assert 0 <= whole.shape[1] - tone(2.0).shape[1] < 3 * 1152
    assert torch.equal(audio.read(tmp_path / "a.wav", start=1).samples, whole[:, RATE:])


def test_24_valid_bits_of_32(tmp_path: Path) -> None:
    samples = tone()
    soundfile.write(tmp_path / "a.wav", samples.T, RATE, format="WAVEX", subtype="PCM_32")
    data = bytearray((tmp_path / "a.wav").read_bytes())
    at = data.index(b"fmt ") + 26
    assert data[at : at + 2] == b"\x20\0"
    data[at : at + 2] = b"\x18\0"
    (tmp_path / "a.wav").write_bytes(data)
    assert torch.equal(audio.read(tmp_path / "a.wav").samples, torch.from_numpy(samples))


def test_broadcast_wav(tmp_path: Path) -> None:
    data = made(tmp_path, "a.wav").read_bytes()
    chunk = b"bext" + struct.pack("<I", 602) + b"a take".ljust(602, b"\0")
    (tmp_path / "a.wav").write_bytes(
        b"RIFF" + struct.pack("<I", len(data) - 8 + len(chunk)) + b"WAVE" + chunk + data[12:]
    )
    assert torch.equal(audio.read(tmp_path / "a.wav").samples, torch.from_numpy(tone()))


def test_an_encoding_that_nobody_knows(tmp_path: Path) -> None:
    data = bytearray(made(tmp_path, "a.wav").read_bytes())
    data[20:22] = b"\x34\x12"
    (tmp_path / "a.wav").write_bytes(data)
    for call in (audio.info, audio.read):
        with pytest.raises(NotAudioError, match="no decoder is known"):
            call(tmp_path / "a.wav")


# Codecs


@pytest.mark.parametrize("length", [*range(44_100, 46_200, 233), 100, 1024])
def test_m4a_is_exact_to_the_sample(length: int, tmp_path: Path) -> None:
    """Its edit list counts milliseconds."""
    for muxer in ({}, {"movflags": "faststart"}):
        encode(tmp_path / "a.m4a", tone(2.0)[:, :length], "aac", **muxer)
        assert audio.info(tmp_path / "a.m4a").frames == length
        assert audio.read(tmp_path / "a.m4a").samples.shape[1] == length


@pytest.mark.parametrize("quality", [None, "354"], ids=["constant", "variable"])
def test_mp3_behind_a_picture_of_false_syncs(quality: str | None, tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    with av.open(str(path), "w") as container:
        options = {} if quality is None else {"flags": "+qscale", "global_quality": quality}
        stream = container.add_stream("libmp3lame", rate=RATE, layout="stereo", options=options)
        frame = av.AudioFrame.from_ndarray(tone(), "fltp", "stereo")
        frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    whole, data = audio.read(path).samples, path.read_bytes()
    start = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0), strict=True))
    picture = b"\0image/jpeg\0\3\0" + b"\xff\xfb\x90\x00" * 2_500_000
    frame_bytes = b"APIC" + struct.pack(">IH", len(picture), 0) + picture
    size = bytes(len(frame_bytes) >> shift & 0x7F for shift in (21, 14, 7, 0))
    path.write_bytes(b"ID3\3\0\0" + size + frame_bytes + data[start:])
    assert audio.info(path).frames == whole.shape[1]
    assert torch.equal(audio.read(path).samples, whole)


@pytest.mark.parametrize("extra", [1, 20, 50, 700])
def test_the_end_of_opus_does_not_depend_on_blocks(extra: int, tmp_path: Path) -> None:
    """libsndfile gives other samples where a read begins shortly before the end."""
    soundfile.write(
        tmp_path / "a.opus", tone(2.0, 1, 48_000)[0, : 65_536 + extra], 48_000, format="OGG", subtype="OPUS"
    )
    expected = soundfile.read(tmp_path / "a.opus", dtype="float32")[0]
    whole = audio.read(tmp_path / "a.opus").samples
    assert audio.info(tmp_path / "a.opus").frames == whole.shape[1] == 65_536 + extra
    assert (whole - torch.from_numpy(expected)).abs().max() < 1e-5


def test_opus_in_webm_is_that_in_ogg(tmp_path: Path) -> None:
    samples = tone(rate=48_000)
    ogg, webm = (encode(tmp_path / f"a.{suffix}", samples, "libopus", 48_000) for suffix in ("opus", "webm"))
    first, second = audio.read(ogg).samples, audio.read(webm).samples
    assert first.shape == second.shape == samples.shape
    assert (first - second).abs().max() < 1e-4


# Samples


@pytest.mark.parametrize("channels", [1, 2, 3, 6, 8])
def test_channels(channels: int, tmp_path: Path) -> None:
    for name, encoding in (("a.wav", "float32"), ("a.flac", "pcm24")):
        audio.write(tmp_path / name, torch.from_numpy(tone(channels=channels)), RATE, encoding)
        assert torch.equal(audio.read(tmp_path / name).samples, torch.from_numpy(tone(channels=channels)))


@pytest.mark.parametrize(
    "samples",
    [
        torch.tensor([[0.5, -0.5], [0.0, 0.0]]),
        torch.tensor([[0.5, -0.25], [-0.5, 0.25]]),
        torch.full((1, 3000), 0.75),
        torch.tensor([[0.25]]),
        torch.tensor([[16_000.0, -16_000.0, 0.0]]),
    ],
    ids=["silent channel", "antiphase", "constant", "one sample", "peaks"],
)
def test_odd_samples(samples: torch.Tensor, tmp_path: Path) -> None:
    audio.write(tmp_path / "a.wav", samples, RATE)
    assert torch.equal(audio.read(tmp_path / "a.wav").samples, samples)
    assert torch.equal(torch.cat(list(audio.blocks(tmp_path / "a.wav", 2)), -1), samples)


@pytest.mark.parametrize("name", ["%03d", "a:b", 'q?*:"<>|', "new\nline", "-- -dash", "file:x", "pipe:0", "a,b;c"])
@pytest.mark.parametrize("suffix", ["wav", "mp3", "m4a"])
def test_names_of_files(name: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path, f"a.{suffix}")
    (tmp_path / f"a.{suffix}").rename(tmp_path / f"{name}.{suffix}")
    monkeypatch.chdir(tmp_path)
    assert audio.read(f"{name}.{suffix}").samples.shape[0] == 2
    assert audio.read(tmp_path / f"{name}.{suffix}", start=0.5).samples.shape[0] == 2


# No audio


@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile a.wav\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:3,\na.wav\n#EXT-X-ENDLIST\n",
        "[playlist]\nFile1=a.wav\nNumberOfEntries=1\n",
    ],
)
@pytest.mark.parametrize("name", ["list.mp3", "list.m3u8", "list.txt"])
def test_playlists_are_not_followed(text: str, name: str, tmp_path: Path) -> None:
    made(tmp_path, "a.wav")
    (tmp_path / name).write_text(text)
    with pytest.raises(NotAudioError, match="can't be read as audio"):
        audio.read(tmp_path / name)


def test_pipes_and_devices_are_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.wav")
    for path in (tmp_path / "p.wav", Path("/dev/null")):
        for call in (audio.info, audio.read, audio.digest):
            with pytest.raises(
                NotAudioError, match=r"is a pipe or device, .* write what comes from it to a file first"
            ):
                call(path)
