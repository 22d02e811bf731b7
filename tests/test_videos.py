"""Videos: which frames are shown, what each visual token shows, and what is recorded of it."""

from __future__ import annotations

import functools
import itertools
import json
import struct
from fractions import Fraction
from io import BytesIO

import numpy as np
import pytest
import torch
from conftest import picture
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_families import eager, generate

import attnlens
from attnlens import measures, plots
from attnlens.cli.main import main
from attnlens.errors import InputError
from attnlens.experiments.force import differing_parts
from attnlens.interventions import AtStep, Copy, Knockout, Route
from attnlens.lenses.patching import PromptPair
from attnlens.models.chat import VIDEO_SOURCES
from attnlens.models.qwen_videos import encode_frames, frame_limits
from attnlens.models.small import small_vlm
from attnlens.models.videos import Video, open_video
from attnlens.runs.dataset import read_questions
from attnlens.testbed import random_film

av = pytest.importorskip("av")

NEW = 4
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
each = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def vlms():
    """Small models by family, each built once."""
    return functools.cache(functools.partial(small_vlm, seed=1))


def film(count=6, size=(140, 112), seed=0):
    return [picture(*size, seed + i) for i in range(count)]


def write_file(path, frames, *, rate=10, codec="ffv1", pixels="bgr0", first=0):
    """Write frames as a file; FFV1 loses nothing."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = *frames[0].size, pixels
        for place, frame in enumerate(frames, first):
            shown = av.VideoFrame.from_image(frame)
            shown.pts, shown.time_base = place, Fraction(1, rate)
            container.mux(stream.encode(shown))
        container.mux(stream.encode())


# Which frames are shown


@given(total=st.integers(1, 3000), rate=st.floats(1, 60), fps=st.floats(0.1, 30))
def test_frames_are_chosen_as_qwen_does(total, rate, fps):
    """By the rule of qwen-vl-utils, written anew; it refuses a video of one frame."""
    from attnlens.models.videos import MAX_FRAMES, MIN_FRAMES, _spread

    count = min(max(total / rate * fps, MIN_FRAMES), MAX_FRAMES, total)
    ours = _spread(total, max(int(count) // 2 * 2, 1))
    wanted = total / rate * fps
    wanted = min(max(wanted, 4), 768 // 2 * 2, total // 2 * 2 or 1)
    wanted = max(int(wanted / 2) * 2, 1)
    theirs = torch.linspace(0, total - 1, wanted, dtype=torch.float64).round().long().tolist()
    assert len(ours) == len(theirs)
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) <= 1  # halves are rounded
    assert ours[0] == 0
    assert ours[-1] == (total - 1 if len(ours) > 1 else 0)


def test_a_file_gives_its_own_frames_and_times(tmp_path):
    frames = film(30)
    write_file(tmp_path / "film.mkv", frames, rate=10)
    shown, info = open_video(Video(tmp_path / "film.mkv", fps=2))
    assert info.frames.indices == (0, 6, 12, 17, 23, 29)
    assert info.frames.seconds == pytest.approx([i / 10 for i in info.frames.indices])
    assert info.frames.rate == pytest.approx(2)
    assert (info.width, info.height) == (140, 112)
    for index, found in zip(info.frames.indices, shown, strict=True):
        assert np.array_equal(np.asarray(found), np.asarray(frames[index]))
    few, info = open_video(Video(str(tmp_path / "film.mkv"), fps=10, max_frames=5))
    assert info.frames.indices == (0, 10, 19, 29)
    assert len(few) == 4
    assert info.frames.rate == pytest.approx(4 / 3)
    one, again = open_video(Video(str(tmp_path / "film.mkv"), 10, 5), first_only=True)
    assert len(one) == 1
    assert again == info


def write_stamped(path, frames, stamps, **options):
    """Write frames at some milliseconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10, **options)
        stream.width, stream.height, stream.pix_fmt = *frames[0].size, "bgr0"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for frame, stamp in zip(frames, stamps, strict=True):
            shown = av.VideoFrame.from_image(frame)
            shown.pts, shown.time_base = stamp, Fraction(1, 1000)
            container.mux(stream.encode(shown))
        container.mux(stream.encode())


def test_frames_at_uneven_times_are_chosen_by_time(tmp_path):
    """The models take what they see to be evenly spaced."""
    frames = film(21)
    write_stamped(tmp_path / "f.mkv", frames, [*range(0, 2000, 100), 18000])
    shown, info = open_video(Video(tmp_path / "f.mkv", fps=0.5))
    assert info.frames.seconds == pytest.approx(np.linspace(0, 18, 8))
    assert info.frames.indices == (0, 19, 19, 19, 19, 19, 19, 20)
    assert info.frames.rate == pytest.approx(7 / 18)
    for index, found in zip(info.frames.indices, shown, strict=True):
        assert np.array_equal(np.asarray(found), np.asarray(frames[index]))


def test_a_last_frame_may_last_long(tmp_path):
    film(20)[0].save(
        tmp_path / "f.gif", save_all=True, append_images=film(20)[1:], duration=[100] * 19 + [9000]
    )
    _, info = open_video(Video(tmp_path / "f.gif"))
    assert info.frames.indices == (0, 6, 13, 19)


def test_an_edit_list_leaves_frames_out(tmp_path):
    """As phones and editors trim: packets are there that are not shown."""
    path = tmp_path / "f.mp4"
    frames = [Image.new("RGB", (64, 48), (i * 6, i * 6, i * 6)) for i in range(40)]
    write_file(path, frames, codec="mpeg4", pixels="yuv420p")
    content = bytearray(path.read_bytes())
    place = content.index(b"elst") + 4
    assert struct.unpack_from(">II", content, place) == (0, 1)
    whole, begin = struct.unpack_from(">Ii", content, place + 8)
    with av.open(str(path)) as container:
        one = int(container.streams.video[0].duration / 40)
    struct.pack_into(">Ii", content, place + 8, whole * 15 // 40, begin + 25 * one)
    path.write_bytes(content)
    shown, info = open_video(Video(path, fps=10))
    assert len(info.frames.indices) == 14
    grey = [np.asarray(f.convert("L")).mean() for f in shown]
    assert grey == pytest.approx([6 * (25 + i) for i in info.frames.indices], abs=6)


def test_a_turned_file_is_turned(tmp_path):
    """As a phone writes it: the matrix of the track says how it is shown."""
    path = tmp_path / "phone.mp4"
    frame = Image.new("RGB", (64, 32), (250, 250, 250))
    frame.paste((10, 10, 10), (0, 0, 32, 32))  # dark on the left
    write_file(path, [frame] * 4, codec="mpeg4", pixels="yuv420p")
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 4 + 40  # version 0: the matrix comes after 40 bytes
    one = 1 << 16
    content[place : place + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    [shown, *_], info = open_video(Video(path))
    assert shown.size == (info.width, info.height) == (32, 64)
    grey = np.asarray(shown.convert("L")).astype(int)
    # the matrix turns by 90 degrees clockwise: left becomes top
    assert grey[:16].mean() < 60
    assert grey[-16:].mean() > 200


def test_a_folder_is_read_in_the_order_of_its_numbers(tmp_path):
    frames = film(12)
    for i, frame in enumerate(frames):
        frame.save(tmp_path / f"frame_{i}.png")
    (tmp_path / "notes.txt").write_text("no frame")
    (tmp_path / "._frame_0.png").write_text("no frame")
    (tmp_path / "folder.png").mkdir()
    shown, info = open_video(Video(tmp_path, fps=4))
    assert info.frames.seconds == pytest.approx([i / 4 for i in range(12)])
    for mine, own in zip(shown, frames, strict=True):
        assert np.array_equal(np.asarray(mine), np.asarray(own))
    _, before = open_video(Video(tmp_path), first_only=True)
    frames[7].transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "frame_7.png")
    assert open_video(Video(tmp_path), first_only=True)[1].sha256 != before.sha256
    _, info = open_video(Video(film(9), max_frames=4))
    assert info.frames.indices == (0, 3, 5, 8)
    assert info.frames.rate == pytest.approx(2 * 4 / 9)
    url = (tmp_path / "folder.png").parent.as_uri()
    assert open_video(Video(url))[1].path == str(tmp_path)
    array = np.stack([np.asarray(frame) for frame in frames])
    assert len(open_video(Video(array))[0]) == 12


def test_what_is_no_video_is_refused(tmp_path, monkeypatch):
    def refused(pattern, source, **options):
        with pytest.raises(InputError, match=pattern):
            open_video(Video(source, **options))

    refused("there is no video at 'gone.mp4'", "gone.mp4")
    refused("nothing is fetched from there", "https://example.org/film.mp4")
    refused("the path of the video is empty", "")
    greys = [Image.new("RGB", (64, 48), (15 * i,) * 3) for i in range(12)]
    write_file(tmp_path / "order.avi", greys, codec="libx264", pixels="yuv420p")
    refused("its frames have no times in order", tmp_path / "order.avi", fps=10)
    for times, words in (
        (range(4), "its frames differ in size"),
        ((0, 1, 1, 2), "two of its frames have the same time"),
    ):
        with av.open(str(tmp_path / "sizes.mkv"), "w") as container:
            stream = container.add_stream("mjpeg", rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
            for time, size in zip(times, [(64, 48)] * 2 + [(96, 80)] * 2, strict=True):
                content = BytesIO()
                picture(*size).save(content, "JPEG")
                packet = av.Packet(content.getvalue())
                packet.stream, packet.time_base = stream, Fraction(1, 10)
                packet.pts = packet.dts = time
                container.mux(packet)
        refused(words, tmp_path / "sizes.mkv", fps=10)
    (tmp_path / "text.mp4").write_text("no video")
    refused(r"text.mp4' cannot be read as a video", tmp_path / "text.mp4")
    write_file(tmp_path / "film.mkv", film(8))
    content = (tmp_path / "film.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(content[: len(content) // 2])
    refused(r"it ends after 0\.\d+ of 0\.80 seconds", tmp_path / "cut.mkv")
    for codec in ("mpeg4", "libx264"):
        write_file(tmp_path / "film.mp4", film(8), codec=codec, pixels="yuv420p")
        noisy = bytearray((tmp_path / "film.mp4").read_bytes())
        third = len(noisy) // 3
        noisy[third : third + 2000] = np.random.default_rng(0).bytes(2000)
        (tmp_path / "noisy.mp4").write_bytes(noisy)
        refused(r"noisy.mp4' cannot be read as a video", tmp_path / "noisy.mp4", fps=10)
    picture().save(tmp_path / "still.png")
    refused("it is a picture, which is given as an image", tmp_path / "still.png")
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n")
    refused("list.m3u8' cannot be read as a video", tmp_path / "list.m3u8")
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        sound.sample_rate = 8000
        for packet in [*stream.encode(sound), *stream.encode()]:
            container.mux(packet)
    refused("it has no pictures", tmp_path / "sound.wav")
    (tmp_path / "empty").mkdir()
    refused("holds no frames", tmp_path / "empty")
    refused("list of frames is empty", [])
    refused("given as int", 7)
    refused("frame 1 is 70 x 70 pixels, and frame 0 140 x 112", [*film(1), picture(70, 70)])
    refused("fps=0: give a number", film(2), fps=0)
    refused("fps=inf", film(2), fps=float("inf"))
    refused("max_frames=1: give a whole number of at least 2", film(2), max_frames=1)
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    refused(r"needs PyAV.*attnlens\[video\]", tmp_path / "film.mkv")


# What the model gets


def test_patches_are_those_of_the_frames():
    """Each patch by hand: rows, columns, frames of a pair and channels in the order of Qwen2-VL."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    images = Qwen2VLImageProcessorPil()
    frames = film(5, (56, 84))
    size = {"shortest_edge": 1, "longest_edge": 10**6}
    patches, grid = encode_frames(images, frames, size)
    assert grid == [3, 6, 4]
    pixels = np.stack([np.asarray(f, np.float64) for f in [*frames, frames[-1]]]) / 255
    pixels = (pixels - images.image_mean) / images.image_std
    place = 0
    for pair in range(3):
        for block_row in range(3):
            for block_column in range(2):
                for row in range(2):
                    for column in range(2):
                        y, x = 14 * (2 * block_row + row), 14 * (2 * block_column + column)
                        part = pixels[2 * pair : 2 * pair + 2, y : y + 14, x : x + 14]
                        expected = part.transpose(3, 0, 1, 2).reshape(-1)
                        assert np.abs(patches[place].numpy() - expected).max() < 1e-5
                        place += 1
    assert place == len(patches)


def test_patches_are_those_of_the_stock_video_processor():
    pytest.importorskip("torchvision")
    from transformers import Qwen2VLVideoProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    frames = film(6, (112, 84))
    size = {"shortest_edge": 1, "longest_edge": 10**6}
    patches, grid = encode_frames(Qwen2VLImageProcessorPil(), frames, size)
    stock = Qwen2VLVideoProcessor(size=size)
    array = np.stack([np.asarray(f) for f in frames])
    theirs = stock([array], return_tensors="pt", do_sample_frames=False)
    assert theirs["video_grid_thw"].tolist() == [grid]
    assert (theirs["pixel_values_videos"] - patches).abs().max() < 1e-5


def test_limits_of_frames():
    """As in qwen-vl-utils, an image's own limits, and what the user gives."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    images, token = Qwen2VLImageProcessorPil(), 28 * 28
    wide = (4 * token, 16384 * token)
    assert frame_limits(images, wide, (None, None), 10) == (128 * token, 768 * token)
    assert frame_limits(images, wide, (None, None), 384) == (128 * token, 300 * token)
    assert frame_limits(images, wide, (None, None), 10_000) == (128 * token, int(134.4 * token))
    small = (16 * token, 36 * token)
    assert frame_limits(images, small, (None, None), 10) == (36 * token, 36 * token)
    assert frame_limits(images, wide, (10 * token, None), 10) == (10 * token, 768 * token)
    assert frame_limits(images, wide, (None, 50 * token), 10) == (50 * token, 50 * token)
    assert frame_limits(images, wide, (900 * token, None), 10) == (900 * token, 900 * token)
    assert frame_limits(images, wide, (3 * token, 5 * token), 10) == (3 * token, 5 * token)


def test_positions_in_time_follow_the_clock(vlms):
    """Qwen2.5-VL (arXiv 2502.13923, section 2.1.2) counts time; Qwen2-VL counts pairs."""
    for family, step in (("qwen2_vl", 1), ("qwen2_5_vl", 4)):
        vlm = vlms(family)
        prompt = vlm.prompt(video=film(), question="When?", fps=1)
        visual = prompt.segments == "visual"
        where = vlm.family.rotary_positions(vlm.model, prompt.inputs)[:, 0, visual].numpy()
        pair, row, column = prompt.images[0].places()
        start = int(np.flatnonzero(visual)[0])
        assert np.array_equal(where[1] - start, row)
        assert np.array_equal(where[2] - start, column)
        if family == "qwen2_vl":
            assert np.array_equal(where[0] - start, pair * step)
        else:  # two seconds a pair, four positions a second
            rate = vlm.model.config.vision_config.tokens_per_second
            assert np.array_equal(where[0] - start, pair * 2 * rate)


def test_qwen3_says_the_time_before_each_pair(vlms):
    vlm = vlms("qwen3_vl")
    prompt = vlm.prompt(picture(112, 112), "When?", video=film(5), fps=1)
    text = vlm.tokenizer.decode(prompt.inputs["input_ids"][0])
    start, end = "<|vision_start|>", "<|vision_end|>"
    tokens = sum(prompt.images[1].tiles[0].count for _ in range(1))
    pair = f"{start}{'<|video_pad|>' * tokens}{end}"
    assert f"<0.5 seconds>{pair}<2.5 seconds>{pair}<4.0 seconds>{pair}" in text
    assert text.count(start) == 4
    between = prompt.segments[np.flatnonzero(prompt.image_of_key == 1)[0] :]
    assert set(between[: int(np.flatnonzero(between == "visual")[-1])]) == {"visual", "vision_end"}


@each
def test_a_bright_square_changes_the_token_of_its_pair(vlms, family):
    """A pair of frames, row and column for each token, without attention among patches."""
    vlm = vlms(family)
    grey = [Image.new("RGB", (140, 112), (90, 90, 90))] * 6

    def features(frames):
        prompt = vlm.prompt(video=frames, question="When?")
        vision = vlm.family.parts(vlm.model).vision
        handles = [
            module.register_forward_hook(lambda _m, _a, output: torch.zeros_like(output))
            for module in vision.modules()
            if type(module).__name__.endswith("Attention")
        ]
        try:
            with torch.no_grad():
                found = vlm.model.get_video_features(
                    prompt.inputs["pixel_values_videos"],
                    prompt.inputs["video_grid_thw"],
                    return_dict=True,
                )
        finally:
            for handle in handles:
                handle.remove()
        return prompt, torch.cat(tuple(found.pooler_output))

    prompt, before = features(grey)
    assert len(before) == (prompt.segments == "visual").sum()
    pairs, rows, columns = prompt.images[0].places()
    boxes = prompt.boxes[0]
    for frame in (0, 3, 4):
        target = int(np.flatnonzero((pairs == frame // 2) & (rows == 2) & (columns == 1))[0])
        bright = grey[0].copy()
        left, top, right, bottom = boxes[target]
        square = (left + 4, top + 4, right - 4, bottom - 4)
        bright.paste((250, 240, 20), tuple(int(v) for v in square))
        _, after = features([bright if i == frame else f for i, f in enumerate(grey)])
        change = (after - before).norm(dim=-1).numpy()
        assert np.flatnonzero(change > 1e-4 * change.max()).tolist() == [target]


# What is recorded


@each
def test_mass_of_each_item_is_that_of_eager_attention(vlms, family):
    vlm = vlms(family)
    prompt = vlm.prompt(picture(112, 84), "How many?", video=film())
    plain = generate(vlm, prompt, NEW)
    with attnlens.record(vlm, prompt, visual_map=True) as recorder:
        tokens = generate(vlm, prompt, NEW)
    assert torch.equal(plain, tokens)
    trace = recorder.trace
    _, attentions = eager(vlm, prompt, NEW)
    pairs = trace.data["visual_tile"].values
    for step in range(NEW):
        whole = np.array([*prompt.segments, *["response"] * step])
        items = np.array([*prompt.image_of_key, *[-1] * step])
        for layer, weights in enumerate(attentions[step]):
            row = weights[0, :, -1].double().numpy()
            here = {"step": step, "layer": layer}
            for segment in np.unique(whole):
                mass = trace.data["mass"].sel(**here, segment=segment).values
                assert np.abs(mass - row[:, whole == segment].sum(-1)).max() < 1e-5
            for item in (0, 1):
                mass = trace.data["mass_by_image"].sel(**here, image=item).values
                assert np.abs(mass - row[:, items == item].sum(-1)).max() < 1e-5
            visual = row[:, whole == "visual"].mean(0)
            shares = measures.frame_shares(trace, layers=layer).sel(step=step).values
            of_pairs = [
                visual[(items[whole == "visual"] == 1) & (pairs == p)].sum() for p in range(3)
            ]
            assert np.abs(shares - of_pairs).max() < 1e-5
    total = measures.visual_share(trace, "mass", item=1)
    assert float(abs(measures.frame_shares(trace).sum("frame") - total).max()) < 1e-6


@each
def test_a_batch_of_videos_is_recorded_as_its_prompts_alone(vlms, family):
    vlm = vlms(family)
    prompts = [
        vlm.prompt(video=film(6), question="When?"),
        vlm.prompt(picture(84, 112), "Which?"),
        vlm.prompt(picture(84, 112), "Which?", video=film(3, (112, 84), 9), fps=1),
    ]
    batch = vlm.batch(prompts)
    plain = generate(vlm, batch, NEW)
    with attnlens.record(vlm, batch) as recorder:
        tokens = generate(vlm, batch, NEW)
    assert torch.equal(plain, tokens)
    for prompt, trace in zip(prompts, recorder.traces, strict=True):
        with attnlens.record(vlm, prompt) as alone:
            generate(vlm, prompt, NEW)
        one = alone.trace
        assert trace.data["predicted_token_id"].equals(one.data["predicted_token_id"])
        assert float(abs(trace.data["mass"] - one.data["mass"]).max()) < 1e-5


def test_one_forced_pass_is_the_run(vlms):
    for family in ("qwen2_5_vl", "qwen3_vl"):
        vlm = vlms(family)
        prompt = vlm.prompt(video=film(), question="When?")
        live = attnlens.run(vlm, prompt, NEW, min_new_tokens=NEW, do_sample=False)
        ids = live.data["predicted_token_id"].values.tolist()
        inputs = vlm.family.append(vlm.model.config, prompt.inputs, ids[:-1])
        with attnlens.record(vlm, prompt) as recorder, torch.no_grad():
            vlm.model(**inputs, use_cache=False)
        assert float(abs(recorder.trace.data["mass"] - live.data["mass"]).max()) < 1e-5


def test_another_rate_is_another_prompt(vlms):
    """Text and pictures are the same, positions or time stamps are not."""
    for family in ("qwen2_5_vl", "qwen3_vl"):
        vlm = vlms(family)
        prompt, slower = (vlm.prompt(video=film(), question="When?", fps=f) for f in (2, 0.5))
        trace = attnlens.run(vlm, prompt, NEW, min_new_tokens=NEW, do_sample=False)
        assert differing_parts(prompt, trace) == []
        assert differing_parts(slower, trace) == ["images"]
        pair = PromptPair(prompt, slower, [5], 0, 5, 6)
        with pytest.raises(InputError, match="other frames, or at other times"):
            pair.passes(vlm)
    with pytest.raises(InputError, match="the prompt has a video, which cannot be replaced"):
        attnlens.dependence(vlm, trace)


def test_several_answers_to_a_video(vlms):
    vlm = vlms("qwen2_5_vl")
    prompt = vlm.prompt(video=film(), question="When?")
    options = {"do_sample": True, "num_return_sequences": 2, "max_new_tokens": NEW}
    torch.manual_seed(3)
    plain = vlm.model.generate(**prompt.inputs, **options)
    torch.manual_seed(3)
    with attnlens.record(vlm, prompt) as recorder:
        tokens = vlm.model.generate(**prompt.inputs, **options)
    assert torch.equal(plain, tokens)
    assert len(recorder.traces) == 2


def test_keys_of_a_video_can_be_hidden(vlms):
    vlm = vlms("qwen2_5_vl")
    prompt = vlm.prompt(picture(112, 84), "When?", video=film())
    hidden = attnlens.run(vlm, prompt, NEW, Knockout(when=AtStep(1), image=1), do_sample=False)
    mass = hidden.data["mass_by_image"].sel(step=slice(1, None), image=1)
    assert float(mass.max()) == 0
    for what in (Copy(when=AtStep(1), image=0), Route(AtStep(1), percent=50, image=0)):
        with pytest.raises(InputError, match="not been verified in a prompt with a video"):
            attnlens.run(vlm, prompt, NEW, what)


# Prompts


def test_messages_may_hold_videos(vlms):
    vlm = vlms("qwen2_5_vl")
    frames = film()
    for name in VIDEO_SOURCES:
        parts = [
            {"type": "video", name: frames, "fps": 1.0, "max_frames": 4},
            {"type": "image", "image": picture(112, 84)},
            {"type": "text", "text": "When?"},
        ]
        prompt = vlm.prompt([{"role": "user", "content": parts}])
        assert [i.frames is not None for i in prompt.images] == [True, False]
        assert prompt.images[0].frames.indices == (0, 2, 3, 5)
        visual = prompt.image_of_key[prompt.image_of_key >= 0]
        assert np.array_equal(np.sort(visual), visual)
        assert len(prompt.images[0].tiles) == 2
    with pytest.raises(InputError, match="video cannot be given with messages"):
        vlm.prompt([{"role": "user", "content": parts}], video=frames)
    with pytest.raises(InputError, match="if need be, fps and max_frames"):
        vlm.prompt([{"role": "user", "content": [{"type": "video", "film": frames}]}])


def test_prompts_that_cannot_be_made(vlms):
    vlm = vlms("qwen2_vl")
    with pytest.raises(InputError, match="fps=2 was given without a video"):
        vlm.prompt(picture(), "When?", fps=2)
    with pytest.raises(InputError, match="videos are not verified for LLaVA"):
        vlms("llava").prompt(video=film(), question="When?")
    bare = small_vlm("qwen2_vl")
    bare.processor.chat_template = vlm.processor.chat_template.replace("<|video_pad|>", "")
    with pytest.raises(InputError, match="0 placeholders for 0 images and 1 videos"):
        bare.prompt(video=film(), question="When?")


def test_films_of_the_testbed():
    rng = np.random.default_rng(0)
    for change in ("colour", "place"):
        one = random_film(rng, frames=6, frame=3, change=change)
        frames = [np.asarray(f).astype(int) for f in one.draw()]
        differs = [bool(np.abs(a - b).any()) for a, b in itertools.pairwise(frames)]
        assert differs == [False, False, True, False, False]
        cells = np.abs(frames[3] - frames[2]).max(-1)
        cells = cells.reshape(one.before.rows, 28, one.before.columns, 28).max((1, 3))
        assert np.flatnonzero(cells).tolist() == list(one.visual_tokens)
        assert len(one.visual_tokens) == (1 if change == "colour" else 2)
        assert one.answer == "4"
        assert one.before.objects[one.target].name in one.question
    for options, words in (
        ({"frames": 1}, "frames=1"),
        ({"frame": 8}, "frame=8: give 1 to 7"),
        ({"change": "size"}, "change='size'"),
    ):
        with pytest.raises(InputError, match=words):
            random_film(rng, **options)


# Figures


@pytest.fixture(scope="module")
def asked(vlms, tmp_path_factory):
    """A trace of an image and a video from a folder."""
    folder = tmp_path_factory.mktemp("film") / "film"
    folder.mkdir()
    for i, frame in enumerate(film()):
        frame.save(folder / f"{i}.png")
    vlm = vlms("qwen2_5_vl")
    prompt = vlm.prompt(picture(112, 84), "When?", video=folder, fps=4)
    trace = attnlens.run(vlm, prompt, NEW, min_new_tokens=NEW, visual_map=True, do_sample=False)
    return folder, trace


def test_frames_show_where_a_step_looks(asked, tmp_path):
    folder, trace = asked
    trace.save(tmp_path / "trace.zarr")
    trace = attnlens.Trace.load(tmp_path / "trace.zarr")
    figure = plots.frames(trace, 2, layer=1)
    panels = [axes for axes in figure.axes if len(axes.images) == 2]
    assert [axes.get_title().splitlines()[0] for axes in panels] == [
        "0.0–0.2 s",
        "0.5–0.8 s",
        "1.0–1.2 s",
    ]
    weights = trace.data["visual_map"].sel(step=2, layer=1)
    mine = weights[(weights["visual_image"] == 1).values]
    for pair, axes in enumerate(panels):
        frame, heat = (np.asarray(image.get_array()) for image in axes.images)
        assert np.array_equal(frame, np.asarray(Image.open(folder / f"{2 * pair}.png")))
        for value in mine[(mine["visual_tile"] == pair).values]:
            row, column = int(value["visual_row"]), int(value["visual_column"])
            assert heat[row, column] == pytest.approx(float(value))
    assert len(plots.frames(trace, -1, pairs=[2], width="one-column").axes) == 2
    for options, words in (
        ({"pairs": [3]}, "the video has pairs 0 to 2"),
        ({"item": 0}, "item=0 is no video"),
        ({"video": film(6, (70, 70))}, "the video has 70 x 70 pixels"),
        ({"video": film(4)}, "the video has 4 frames: there is no frame 5"),
    ):
        with pytest.raises(InputError, match=words):
            plots.frames(trace, 2, **options)
    with pytest.raises(InputError, match=r"image 1 is a video: draw it with plots\.frames"):
        plots.overlay(trace, 2, image_index=1)


def caption(figure):
    [text] = [t.get_text() for t in figure.texts if t.get_gid() == "caption"]
    return " ".join(text.split())


def test_a_changed_video_is_not_drawn(vlms, tmp_path):
    write_file(tmp_path / "film.mkv", film(8))
    vlm = vlms("qwen3_vl")
    prompt = vlm.prompt(video=tmp_path / "film.mkv", question="When?")
    trace = attnlens.run(vlm, prompt, 2, visual_map=True, do_sample=False)
    plots.frames(trace, 0)
    write_file(tmp_path / "film.mkv", film(8, seed=50))
    with pytest.raises(InputError, match="changed since it was recorded: give video="):
        plots.frames(trace, 0)
    (tmp_path / "film.mkv").unlink()
    with pytest.raises(InputError, match="is not there: give video="):
        plots.frames(trace, 0)
    plots.frames(trace, 0, video=film(8))


def test_curves_of_frames_and_items(asked):
    _, trace = asked
    figure = plots.frame_trend(trace)
    shares = measures.frame_shares(trace)
    curves = [line.get_ydata() for line in figure.axes[0].lines[:3]]
    assert np.allclose(np.stack(curves, 1), shares.values)
    for name in ("look-back", "mass", "mean-weight"):
        found = measures.shares(trace, name, items=True)
        assert found["curve"].values.tolist() == ["image 0", "video 1", "query", "generated"]
        for item, curve in enumerate(("image 0", "video 1")):
            alone = measures.visual_share(trace, name, item=item)
            assert np.allclose(found.sel(curve=curve), alone, equal_nan=True)
        drawn = plots.trend(trace, name, items=True)
        labels = [text.get_text() for text in drawn.legends[0].get_texts()]
        assert labels[:4] == ["image 0", "video 1", "query text", "generated text"]
        ends = "The visual keys of each image and video have a curve of their own."
        assert caption(drawn).endswith(ends)
        assert ends not in caption(plots.trend(trace, name))
    for name in ("lookback-ratio", "reflection-v"):
        with pytest.raises(InputError, match="no counterpart for query"):
            plots.trend(trace, name, items=True)
        with pytest.raises(InputError, match="cannot measure one image of several"):
            measures.visual_share(trace, name, item=0)
    with pytest.raises(InputError, match="not counted by item"):
        measures.shares(trace, items=True, include_copied=True)


def test_measures_of_frames_need_a_video(vlms):
    vlm = vlms("qwen2_5_vl")
    trace = attnlens.run(vlm, vlm.prompt(picture(), "What?"), 2, visual_map=True, do_sample=False)
    with pytest.raises(InputError, match="the trace has no video"):
        measures.frame_shares(trace)
    both = [{"type": "video", "video": film(2)}, {"type": "video", "video": film(4)}]
    messages = [{"role": "user", "content": [*both, {"type": "text", "text": "When?"}]}]
    prompt = vlm.prompt(messages)
    trace = attnlens.run(vlm, prompt, 2, visual_map=True, do_sample=False)
    with pytest.raises(InputError, match=r"has 2 videos: give item, one of \[0, 1\]"):
        measures.frame_shares(trace)
    assert measures.frame_shares(trace, 1).sizes["frame"] == 2
    plain = attnlens.run(vlm, prompt, 2, visual_map=False, do_sample=False)
    with pytest.raises(InputError, match="no visual map"):
        measures.frame_shares(plain, 1)


# The command


@pytest.mark.slow
def test_the_command_takes_a_video(tmp_path, capsys):
    one = random_film(np.random.default_rng(1), frames=4, frame=2)
    folder = tmp_path / "film"
    folder.mkdir()
    for i, frame in enumerate(one.draw()):
        frame.save(folder / f"{i}.png")
    common = ["--max_new_tokens", "4", "--device", "cpu", "--max_pixels", "60000"]
    common += ["--min_pixels", "1", "--save_folder", str(tmp_path / "out"), "--mode", "normal"]
    options = ["--video_path", str(folder), "--question", one.question, "--fps", "1"]
    assert main(["trend", *options, *common]) == 0
    out = tmp_path / "out" / "film"
    assert (out / "normal_frame_attention.png").stat().st_size > 1000
    trace = attnlens.Trace.load(out / "normal_trace.zarr")
    assert trace.attrs["images"][0]["frames"]["seconds"] == [0.0, 1.0, 2.0, 3.0]
    data = tmp_path / "questions.jsonl"
    lines = [{"video": "film", "question": one.question, "answer": one.answer}]
    data.write_text("\n".join(json.dumps(line) for line in lines))
    assert main(["trend", "--data", str(data), "--fps", "1", *common]) == 0
    # what is shown decides what is done again: here other frames, at other times
    for i in range(1, 3):
        (folder / f"{i}.png").unlink()
    assert main(["trend", "--data", str(data), "--fps", "1", *common]) == 0
    trace = attnlens.Trace.load(
        tmp_path / "out" / "trend_runs" / "normal" / "00001_film" / "trace.zarr"
    )
    assert trace.attrs["images"][0]["frames"]["seconds"] == [0.0, 1.0]
    wrong = [lines[0] | {"image": "a.png"}, lines[0] | {"fps": 4}]
    both = tmp_path / "wrong.jsonl"
    both.write_text("\n".join(json.dumps(line) for line in wrong))
    assert [question.problem for question in read_questions(both)] == [
        "has 'image' and 'video': give one of them",
        "has 'fps': give --fps, which holds for all lines",
    ]
    run = tmp_path / "out" / "trend" / "normal" / "00001_film"
    assert (run / "normal_frame_attention.png").exists()
    capsys.readouterr()
    assert main(["trend", "--image_path", "a.png", *options, *common]) == 2
    assert "--image_path and --video_path are given" in capsys.readouterr().err
    assert main(["trend", *options, "--fps", "0", *common]) == 2
    assert "fps=0.0: give a number" in capsys.readouterr().err
    picture().save(tmp_path / "a.png")
    image = ["--image_path", str(tmp_path / "a.png"), "--question", "What?", "--fps", "3"]
    assert main(["trend", *image, *common]) == 2
    assert "--fps 3.0: no question is about a video" in capsys.readouterr().err
    words = ["--data", str(data), "--intervention", "boost:1", "--when", "step:2"]
    assert main(["recover", *words, *common]) == 2
    assert "is a video, which only attnlens trend" in capsys.readouterr().err
