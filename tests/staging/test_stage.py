"""What a stage gives out, in what order, and how much of the disk it takes."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from wsi.errors import ConfigError
from wsi.slides.parts import parts_of
from wsi.staging import Stage, StageCounts

MB = 1_000_000
DATA = Path(__file__).parents[2].parent / "shared" / "data"

Put = Callable[[Path, int], Path]
Wait = Callable[..., None]
Copier = Callable[[int, Path], psutil.Process]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "stage"


@pytest.fixture
def stage(folder: Path) -> Iterator[Stage]:
    with Stage(folder, 10 * MB) as stage:
        yield stage


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A stage with room for the small slides of many tests: starting one takes a second."""
    with Stage(tmp_path_factory.mktemp("shared"), 100 * MB) as stage:
        yield stage


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A function that mounts a small disk in memory."""
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        place = tmp_path / "disk"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(place)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting a tmpfs is not permitted here")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", "-l", str(place)], check=True)


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")


# -- whole copies ------------------------------------------------------------------------------


def test_a_copy_has_name_content_and_time_of_its_slide(
    shared: Stage, tmp_path: Path, put_slide: Put
) -> None:
    slide = put_slide(tmp_path / "in" / "Schnitt ä\udcff'1.svs", 3 * MB + 1)
    copy = shared.get(slide)
    assert copy != slide
    assert copy.name == slide.name
    assert copy.read_bytes() == slide.read_bytes()
    assert copy.stat().st_mtime_ns == slide.stat().st_mtime_ns
    assert slide not in shared.notes


def test_copies_are_for_their_owner_only(shared: Stage, tmp_path: Path, put_slide: Put) -> None:
    copy = shared.get(put_slide(tmp_path / "a.svs", 10))
    assert copy.parent.parent.stat().st_mode & 0o777 == 0o700


def test_what_was_done_is_counted(stage: Stage, tmp_path: Path, put_slide: Put) -> None:
    for name, size in (("a.svs", 4097), ("b.svs", 11 * MB), ("c.svs", 4096)):
        stage.get(put_slide(tmp_path / name, size))
    assert stage.counts == StageCounts(2, (2 + 1 + 1 + 1) * 4096, 1)


def test_an_empty_slide_is_copied(shared: Stage, tmp_path: Path, put_slide: Put) -> None:
    slide = put_slide(tmp_path / "a.svs", 0)
    copy = shared.get(slide)
    assert copy != slide
    assert copy.read_bytes() == b""


def test_a_relative_path_is_copied(
    shared: Stage, tmp_path: Path, put_slide: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_slide(tmp_path / "in" / "a.svs", 10)
    monkeypatch.chdir(tmp_path / "in")
    copy = shared.get(Path("a.svs"))
    assert copy.is_absolute()
    assert copy.read_bytes() == (tmp_path / "in" / "a.svs").read_bytes()


def test_an_mrxs_slide_is_copied_with_its_folder(
    shared: Stage, tmp_path: Path, put_slide: Put
) -> None:
    source = tmp_path / "in"
    slide = put_slide(source / "a.mrxs", 100)
    for name in ("Slidedat.ini", "Index.dat", "Data0000.dat"):
        put_slide(source / "a" / name, 5000)
    put_slide(source / "b.mrxs", 100)
    put_slide(source / "b" / "Data0000.dat", 100)
    copy = shared.get(slide)
    names = ["a.mrxs", "a/Data0000.dat", "a/Index.dat", "a/Slidedat.ini"]
    assert [p.relative_to(copy.parent).as_posix() for p in files_below(copy.parent)] == sorted(
        names, key=Path
    )
    for name in names:
        assert (copy.parent / name).read_bytes() == (source / name).read_bytes()


def test_a_hamamatsu_index_is_copied_with_its_pictures(
    shared: Stage, tmp_path: Path, put_slide: Put
) -> None:
    slide = tmp_path / "in" / "a.vms"
    put_slide(tmp_path / "in" / "a-0.jpg", 1000)
    put_slide(tmp_path / "in" / "other.jpg", 1000)
    slide.write_text("[Virtual Microscope Specimen]\nImageFile=a-0.jpg\n")
    copy = shared.get(slide)
    assert sorted(p.name for p in copy.parent.iterdir()) == ["a-0.jpg", "a.vms"]


@pytest.mark.skipif(not (DATA / "edge" / "boxes_dcm").is_dir(), reason="no reference data here")
def test_a_dicom_series_is_copied_whole_and_opens(shared: Stage) -> None:
    import openslide

    slide = min((DATA / "edge" / "boxes_dcm").glob("*.dcm"))
    parts = parts_of(slide)
    copy = shared.get(slide)
    assert copy != slide
    assert sorted(p.name for p in copy.parent.iterdir()) == sorted(p.name for p in parts)
    with openslide.OpenSlide(slide) as one, openslide.OpenSlide(copy) as other:
        assert other.level_dimensions == one.level_dimensions
        size = (64, 64)
        assert (
            other.read_region((0, 0), 0, size).tobytes()
            == one.read_region((0, 0), 0, size).tobytes()
        )


# -- room --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_bound_is_never_exceeded(tmp_path: Path, put_slide: Put) -> None:
    rng = random.Random(0)
    slides = [put_slide(tmp_path / "in" / f"{i}.svs", rng.randrange(3 * MB)) for i in range(40)]
    for i in range(30):
        put_slide(tmp_path / "in" / "m" / f"Data{i}.dat", rng.randrange(20_000))
    slides.insert(5, put_slide(tmp_path / "in" / "m.mrxs", 10))
    taken: list[int] = []
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            private = next((tmp_path / "stage").glob(".wsi-stage-*[!k]"), None)
            if private is not None:
                command = ["du", "--block-size=1", "--summarize", str(private)]
                found = subprocess.run(command, capture_output=True, text=True).stdout
                taken.extend(int(line.split()[0]) for line in found.splitlines())

    watcher = threading.Thread(target=look)
    with Stage(tmp_path / "stage", 8 * MB) as stage:
        watcher.start()
        stage.want(slides)
        for slide in slides:
            copy = stage.get(slide)
            assert copy != slide
            assert copy.read_bytes() == slide.read_bytes()
            time.sleep(0.02)
            stage.done(slide)
        over.set()
        watcher.join()
    assert len(taken) > 20
    assert max(taken) > 4 * MB  # it was watched while it was full
    assert max(taken) <= 8 * MB


def test_a_slide_larger_than_the_bound_is_read_in_its_place(
    stage: Stage, tmp_path: Path, put_slide: Put
) -> None:
    small, large = put_slide(tmp_path / "a.svs", MB), put_slide(tmp_path / "b.svs", 11 * MB)
    stage.want([large, small])
    assert stage.get(large) == large
    assert stage.notes == {large: "0.011 GB do not fit into a stage of 0.01 GB"}
    assert stage.get(small) != small
    assert stage.counts.originals == 1


def test_done_makes_room(stage: Stage, folder: Path, tmp_path: Path, put_slide: Put) -> None:
    first, second = (put_slide(tmp_path / f"{n}.svs", 6 * MB) for n in "ab")
    stage.want([first, second])
    copy = stage.get(first)
    stage.done(first)
    assert not copy.exists()
    assert stage.get(second) != second
    assert [p.name for p in files_below(folder)] == ["b.svs"]


def test_a_slide_without_room_beside_those_read_does_not_hang(
    stage: Stage, tmp_path: Path, put_slide: Put
) -> None:
    first, second = (put_slide(tmp_path / f"{n}.svs", 6 * MB) for n in "ab")
    stage.want([first, second])
    copy = stage.get(first)
    assert stage.get(second) == second
    assert stage.notes == {second: "no room beside the slides that are being read"}
    assert copy.exists()


def test_a_slide_asked_for_out_of_turn_takes_the_place_of_the_last_unread(
    stage: Stage, folder: Path, tmp_path: Path, put_slide: Put, wait_until: Wait
) -> None:
    slides = [put_slide(tmp_path / f"{n}.svs", 3 * MB) for n in "abcde"]
    stage.want(slides)
    wait_until(lambda: [p.name for p in files_below(folder)] == ["a.svs", "b.svs", "c.svs"])
    assert stage.get(slides[4]) != slides[4]
    assert [p.name for p in files_below(folder)] == ["a.svs", "b.svs", "e.svs"]
    stage.done(slides[4])
    wait_until(lambda: [p.name for p in files_below(folder)] == ["a.svs", "b.svs", "c.svs"])


def test_slides_are_copied_ahead_in_the_order_wanted(
    stage: Stage, folder: Path, tmp_path: Path, put_slide: Put, wait_until: Wait
) -> None:
    slides = {n: put_slide(tmp_path / f"{n}.svs", MB) for n in "dbac"}
    stage.want([slides["d"], slides["b"]])
    stage.want([slides["b"], slides["a"], slides["c"]])
    wait_until(lambda: stage.counts.slides == 4)
    ages = {path.name: int(path.parent.name) for path in files_below(folder)}
    assert sorted(ages, key=ages.__getitem__) == ["d.svs", "b.svs", "a.svs", "c.svs"]
    made = {path.name: path.stat().st_ctime_ns for path in files_below(folder)}
    assert sorted(made, key=made.__getitem__) == ["d.svs", "b.svs", "a.svs", "c.svs"]


def test_done_cancels_what_is_not_copied_yet(
    folder: Path, tmp_path: Path, put_slide: Put, wait_until: Wait
) -> None:
    first, second, third = (put_slide(tmp_path / f"{n}.svs", MB) for n in "abc")
    os.truncate(first, 1000 * MB)  # takes a while, and none of this disk
    seen = [0]

    def is_there() -> bool:
        found = [p for p in files_below(folder) if p.name == "a.svs"]
        with contextlib.suppress(FileNotFoundError):
            seen.extend(p.stat().st_size for p in found)
        return bool(found)

    with Stage(folder, 10**10) as stage:
        stage.want([first, second, third])
        wait_until(is_there)  # the first is in the making
        stage.done(first)
        stage.done(second)
        wait_until(lambda: not is_there())
        assert stage.get(third) != third
        assert [p.name for p in files_below(folder)] == ["c.svs"]
        assert stage.counts.slides == 1
    assert max(seen) < 500 * MB


def test_what_is_not_copied_in_time_is_read_in_its_place(
    folder: Path, tmp_path: Path, put_slide: Put
) -> None:
    slide = put_slide(tmp_path / "a.svs", MB)
    with Stage(folder, 10 * MB) as stage:
        assert stage.get(slide, timeout_s=0) == slide
        assert stage.notes == {slide: "it was not copied within 0 s"}
        stage.done(slide)
        assert stage.get(slide) != slide


def test_several_threads_share_a_stage(folder: Path, tmp_path: Path, put_slide: Put) -> None:
    slides = [put_slide(tmp_path / "in" / f"{i}.svs", MB) for i in range(40)]
    failures: list[Path] = []

    def read(mine: list[Path], stage: Stage) -> None:
        stage.want(mine)
        for slide in mine:
            if stage.get(slide).read_bytes() != slide.read_bytes():
                failures.append(slide)
            stage.done(slide)

    with Stage(folder, 5 * MB) as stage:
        threads = [
            threading.Thread(target=read, args=(slides[k::4], stage), daemon=True) for k in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
        assert files_below(folder) == []
        assert stage.counts.slides >= 30
    assert failures == []


# -- what goes wrong ---------------------------------------------------------------------------


def test_a_missing_slide_is_left_to_the_reader(shared: Stage, tmp_path: Path) -> None:
    assert shared.get(tmp_path / "no.svs") == tmp_path / "no.svs"
    assert shared.notes == {
        tmp_path / "no.svs": "no.svs cannot be read (No such file or directory)"
    }


@pytest.mark.skipif(
    not Path("/sys/class/net/lo/speed").exists(), reason="no file here that cannot be read"
)
def test_a_slide_that_cannot_be_read_is_left_to_the_reader(shared: Stage, tmp_path: Path) -> None:
    slide = tmp_path / "a.svs"
    slide.symlink_to("/sys/class/net/lo/speed")
    assert shared.get(slide) == slide
    assert shared.notes[slide] == "a.svs cannot be copied (Invalid argument)"


def test_a_folder_in_place_of_a_slide_is_left_to_the_reader(shared: Stage, tmp_path: Path) -> None:
    (tmp_path / "a.svs").mkdir()
    assert shared.get(tmp_path / "a.svs") == tmp_path / "a.svs"
    assert shared.notes[tmp_path / "a.svs"] == "a.svs is not a file"


def test_a_slide_still_being_written_is_read_in_its_place(
    folder: Path, tmp_path: Path, put_slide: Put
) -> None:
    slide = put_slide(tmp_path / "a.svs", 50 * MB)
    over = threading.Event()

    def write() -> None:
        with slide.open("ab") as handle:
            while not over.is_set():
                handle.write(b"more")
                handle.flush()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with Stage(folder, 10**9) as stage:
            assert stage.get(slide) == slide
            assert stage.notes == {slide: "it changed while it was copied"}
            assert files_below(folder) == []
    finally:
        over.set()
        writer.join()


def test_a_full_disk_is_no_trouble(
    tmpfs: Callable[[str], Path], tmp_path: Path, put_slide: Put
) -> None:
    disk = tmpfs("size=4m")
    small, large, last = (put_slide(tmp_path / f"{n}.svs", n * MB) for n in (1, 6, 2))
    with Stage(disk / "stage", 100 * MB) as stage:
        stage.want([small, large, last])
        assert stage.get(small) != small
        assert stage.get(large) == large
        assert stage.notes == {large: "the disk of the stage is full"}
        assert stage.get(last).read_bytes() == last.read_bytes()


def test_slides_ahead_wait_for_room_on_the_disk(
    tmpfs: Callable[[str], Path], tmp_path: Path, put_slide: Put
) -> None:
    disk = tmpfs("size=4m")
    slides = [put_slide(tmp_path / f"{n}.svs", 2 * MB) for n in range(5)]
    with Stage(disk / "stage", 100 * MB) as stage:
        stage.want(slides)
        for slide in slides:
            assert stage.get(slide) != slide
            stage.done(slide)


def test_a_disk_that_fills_up_while_copying_is_no_trouble(
    tmpfs: Callable[[str], Path], tmp_path: Path, put_slide: Put
) -> None:
    disk = tmpfs("size=4m,nr_inodes=12")  # room for bytes, not for files
    slide = put_slide(tmp_path / "a.mrxs", 10)
    for i in range(20):
        put_slide(tmp_path / "a" / f"Data{i}.dat", 10)
    with Stage(disk / "stage", 100 * MB) as stage:
        assert stage.get(slide) == slide
        assert stage.notes == {slide: "the disk of the stage is full"}
        assert files_below(disk) == []


@pytest.mark.slow
def test_a_copier_that_was_killed_is_replaced_and_tries_again(
    folder: Path, tmp_path: Path, put_slide: Put, wait_until: Wait, copier_of: Copier
) -> None:
    large, small = put_slide(tmp_path / "a.svs", 60 * MB), put_slide(tmp_path / "b.svs", MB)
    with Stage(folder, 10**9) as stage:
        for _ in range(2):
            stage.want([large])
            wait_until(lambda: files_below(folder))
            copier_of(os.getpid(), folder).kill()
            assert stage.get(small).read_bytes() == small.read_bytes()
            assert stage.get(large).read_bytes() == large.read_bytes()
            stage.done(large)
            stage.done(small)
        assert stage.notes == {}


@pytest.mark.slow
def test_a_slide_over_which_copiers_die_is_read_in_its_place(
    folder: Path, tmp_path: Path, put_slide: Put, wait_until: Wait, copier_of: Copier
) -> None:
    large, small = put_slide(tmp_path / "a.svs", 80 * MB), put_slide(tmp_path / "b.svs", MB)
    with Stage(folder, 10**9) as stage:
        stage.want([large, small])
        for _ in range(2):
            wait_until(lambda: files_below(folder))
            copier = copier_of(os.getpid(), folder)
            copier.kill()
            wait_until(lambda copier=copier: not copier.is_running())  # replaced
        assert stage.get(large) == large
        assert stage.notes == {large: "the process that copies slides died or hung (-9)"}
        assert stage.get(small) != small
        assert [p.name for p in files_below(folder)] == ["b.svs"]


def test_a_copier_that_cannot_live_is_given_up(
    folder: Path, tmp_path: Path, put_slide: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsi.staging.copier._PROGRAM", "raise SystemExit(7)")
    slides = [put_slide(tmp_path / f"{i}.svs", MB) for i in range(10)]
    with Stage(folder, 10 * MB) as stage:
        stage.want(slides)
        assert [stage.get(slide) for slide in slides] == slides
        assert "died again and again" in stage.notes[slides[-1]]
    assert list(folder.iterdir()) == []


@pytest.mark.slow
def test_a_copier_that_hangs_is_replaced(
    folder: Path, tmp_path: Path, put_slide: Put, copier_of: Copier, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (put_slide(tmp_path / f"{n}.svs", MB) for n in "ab")
    third = put_slide(tmp_path / "c.svs", MB)
    with Stage(folder, 10 * MB) as stage:
        assert stage.get(first) != first
        copier_of(os.getpid(), folder).suspend()
        monkeypatch.setattr("wsi.staging.stage._SILENCE", 1)
        assert stage.get(second) == second
        assert "died or hung" in stage.notes[second]
        monkeypatch.undo()
        assert stage.get(third) != third


@pytest.mark.parametrize("size", [0, -1])
def test_a_stage_without_room_is_refused(folder: Path, size: int) -> None:
    with pytest.raises(ConfigError, match="holds no slide"):
        Stage(folder, size)
    assert not folder.exists()


def test_a_stage_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="no copies of slides can be written there"):
        Stage(tmp_path / "file" / "stage", MB)


def test_a_stage_costs_the_program_no_heavy_import() -> None:
    program = (
        "import sys, wsi.staging; "
        "print([m for m in ('torch', 'openslide', 'pydicom', 'cv2', 'numpy') if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert found.stdout.strip() == "[]"
