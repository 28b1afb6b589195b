"""Tokenized once: found again by content, written whole or not at all, made anew when damaged."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from growlm.config.schema import DataConfig
from growlm.data import DataListener, TextFiles, open_run_data, tokenize_source
from growlm.data.corpus import ARRAY_FILES
from growlm.runtime.errors import DiskError, UserError
from growlm.storage import file_digests
from growlm.storage.file_digests import FileDigestCache
from growlm.storage.locks import acquire_lock
from tests.data.made_corpora import ListSource, tokenizer, trained_on
from tests.data.test_text_files import write
from tests.training.stopping import slow

ROOT = Path(__file__).parents[2]


class Notes(DataListener):
    def __init__(self):
        self.tasks, self.notes = [], []

    def data_progress(self, task, fraction, note):
        self.tasks.append((task, fraction, note))

    def message_logged(self, text):
        self.notes.append(text)


def settings(folder: Path, **changes) -> DataConfig:
    return DataConfig(**{"cache": str(folder), "validation_every": 5} | changes)


class Counting(ListSource):
    """Counts how often it is read."""

    def __init__(self, documents):
        super().__init__(documents)
        self.times = 0

    def read(self, position=None):
        self.times += 1
        return super().read(position)


DOCUMENTS = [f"document {i} é" for i in range(100)]


def entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("[0-9a-f]*") if path.is_dir())


def test_a_corpus_is_its_documents_in_two_parts(tmp_path):
    corpus = tokenize_source(settings(tmp_path / "c"), tokenizer, ListSource(DOCUMENTS))
    kept, held_out = trained_on(DOCUMENTS, 5), DOCUMENTS[4::5]
    assert tokenizer.decode(corpus.train) == "".join(f"{text}<|endoftext|>" for text in kept)
    assert [tokenizer.decode(tokens) for tokens, _ in corpus.iter_validation_documents()] == [
        f"{text}<|endoftext|>" for text in held_out
    ]
    assert [size for _, size in corpus.iter_validation_documents()] == [
        len(text.encode()) for text in held_out
    ]
    assert np.diff(corpus.train_ends, prepend=0).tolist() == [len(t.encode()) + 1 for t in kept]
    assert (corpus.train_documents, corpus.validation_documents) == (80, 20)
    assert corpus.train_bytes == len("".join(kept).encode())
    assert corpus.validation_bytes == len("".join(held_out).encode())


def test_it_is_tokenized_once(tmp_path):
    source = Counting(DOCUMENTS)
    first = tokenize_source(settings(tmp_path / "c"), tokenizer, source)
    again = tokenize_source(settings(tmp_path / "c"), tokenizer, source)
    assert source.times == 1
    assert np.array_equal(first.train, again.train)
    assert first.digest == again.digest
    tokenize_source(settings(tmp_path / "c", validation_every=7), tokenizer, source)
    assert source.times == 2
    assert len(entries(tmp_path / "c")) == 2


def test_files_are_known_by_what_they_hold(tmp_path):
    cache = tmp_path / "c"
    path = write(tmp_path / "x.txt", DOCUMENTS)

    def digest(path):
        return tokenize_source(
            settings(cache), tokenizer, TextFiles(str(path), "text", "line")
        ).digest

    first = digest(path)
    assert digest(path.rename(tmp_path / "y.txt")) == first
    assert len(entries(cache)) == 1
    old = (tmp_path / "y.txt").stat()
    (tmp_path / "y.txt").write_text((tmp_path / "y.txt").read_text().replace("7", "8"))
    os.utime(tmp_path / "y.txt", ns=(old.st_atime_ns, old.st_mtime_ns + 1))
    assert digest(tmp_path / "y.txt") != first
    assert len(entries(cache)) == 2


class Changing(TextFiles):
    """Its file is written to while it is read."""

    def read(self, position=None):
        (path,) = (file.path for file in self.files)
        path.write_text(path.read_text().replace("document", "DOCUMENT"))
        os.utime(path, ns=(1, 1))
        return super().read(position)


def test_a_file_that_changes_while_it_is_tokenized_is_said_and_not_kept(tmp_path):
    cache, path = tmp_path / "c", write(tmp_path / "x.txt", DOCUMENTS)
    before = path.read_text()
    with pytest.raises(UserError, match=r"data\.path=.*x\.txt: changed while it was tokenized"):
        tokenize_source(settings(cache), tokenizer, Changing(str(path), "text", "paragraph"))
    assert not entries(cache)
    path.write_text(before)
    corpus = tokenize_source(settings(cache), tokenizer, TextFiles(str(path), "text", "paragraph"))
    assert tokenizer.decode(corpus.train).startswith(DOCUMENTS[0])


def test_other_kinds_of_file_with_the_same_documents_are_the_same_corpus(tmp_path):
    digests = {
        tokenize_source(
            settings(tmp_path / "c"),
            tokenizer,
            TextFiles(str(write(tmp_path / name, DOCUMENTS)), "text", "paragraph"),
        ).digest
        for name in ("x.txt", "x.jsonl.gz", "x.parquet", "x.csv.zst")
    }
    assert len(digests) == 1


@pytest.fixture
def settled(monkeypatch):
    """Files count as settled at once; nobody can set back the time at which an inode changed."""
    monkeypatch.setattr(file_digests, "MIN_AGE_NS", -1)


@pytest.fixture
def read_files(monkeypatch):
    """The files whose checksums are taken."""
    read, really = [], file_digests.hash_file
    monkeypatch.setattr(file_digests, "hash_file", lambda p: read.append(p) or really(p))
    return read


def test_checksums_of_files_that_did_not_change_are_remembered(tmp_path, settled, read_files):
    (tmp_path / "c").mkdir()
    path = write(tmp_path / "x.txt", DOCUMENTS)
    digests = FileDigestCache(tmp_path / "c" / "digests.json")
    first = digests.digest(path)
    assert digests.digest(path) == first
    digests.save()
    assert FileDigestCache(tmp_path / "c" / "digests.json").digest(path) == first
    assert len(read_files) == 1
    os.utime(path, ns=(1, 1))
    assert digests.digest(path) == first
    assert len(read_files) == 2


def test_what_changed_a_moment_ago_is_not_remembered(tmp_path, read_files):
    path = write(tmp_path / "x.txt", DOCUMENTS)
    digests = FileDigestCache(tmp_path / "digests.json")
    assert digests.digest(path) == digests.digest(path)
    assert len(read_files) == 2


def edit_in_place(path):
    """Another text of the same size, time of change and inode."""
    before = path.stat()
    with path.open("r+") as file:
        text = file.read()
        file.seek(0)
        file.write(text.replace("7", "8"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.read_text() != text
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (
        before.st_size,
        before.st_mtime_ns,
        before.st_ino,
    )


def test_a_text_that_was_edited_under_its_old_time_is_another_corpus(tmp_path, settled):
    path = write(tmp_path / "x.txt", DOCUMENTS)

    def corpus():
        return tokenize_source(
            settings(tmp_path / "c"), tokenizer, TextFiles(str(path), "", "line")
        )

    first, again = corpus(), corpus()
    assert first.digest == again.digest
    edit_in_place(path)
    assert "document 8" in tokenizer.decode(corpus().train)
    assert "document 7" not in tokenizer.decode(corpus().train)
    path.write_text("\n\n".join(DOCUMENTS))
    path.chmod(0o600)
    assert corpus().digest == first.digest
    assert len(entries(tmp_path / "c")) == 2


@pytest.mark.parametrize("change", [Path.touch, lambda path: path.chmod(0o600), edit_in_place])
def test_only_other_text_stops_the_tokenizing(change, tmp_path, settled):
    class Meddled(TextFiles):
        def read(self, position=None):
            change(self.files[0].path)
            return super().read(position)

    path = write(tmp_path / "x.txt", DOCUMENTS)
    if change is edit_in_place:
        with pytest.raises(UserError, match="changed while it was tokenized"):
            tokenize_source(settings(tmp_path / "c"), tokenizer, Meddled(str(path), "", "line"))
    else:
        tokenize_source(settings(tmp_path / "c"), tokenizer, Meddled(str(path), "", "line"))


def test_many_files_are_remembered_in_one_go(tmp_path, settled, read_files, monkeypatch):
    """For every file, what is known of all of them was once parsed and written: 8,000 files took 476 s."""
    parsed, written = [], []
    really_read, really_write = file_digests.read_json, file_digests.atomic_write_text
    monkeypatch.setattr(
        file_digests,
        "read_json",
        lambda *given, **limits: parsed.append(1) or really_read(*given, **limits),
    )
    monkeypatch.setattr(
        file_digests, "atomic_write_text", lambda *given: written.append(1) or really_write(*given)
    )
    (tmp_path / "texts").mkdir()
    for number in range(300):
        (tmp_path / "texts" / f"{number}.txt").write_text(f"text {number}")
    source = TextFiles(str(tmp_path / "texts"), "text", "line")
    first = tokenize_source(settings(tmp_path / "c"), tokenizer, source)
    assert len(read_files) == 300
    assert (len(parsed), len(written)) == (2, 1)
    assert tokenize_source(settings(tmp_path / "c"), tokenizer, source).digest == first.digest
    assert len(read_files) == 300
    assert (len(parsed), len(written)) == (3, 1)


def test_checksums_are_saved_while_many_are_taken(tmp_path, settled, monkeypatch):
    monkeypatch.setattr(file_digests, "SAVE_INTERVAL_S", 0.0)
    digests = FileDigestCache(tmp_path / "digests.json")
    digests.digest(write(tmp_path / "x.txt", DOCUMENTS))
    assert (tmp_path / "digests.json").exists()


def test_two_processes_keep_each_others_checksums(tmp_path, settled):
    both = [FileDigestCache(tmp_path / "digests.json") for _ in range(2)]
    for digests, name in zip(both, "ab", strict=True):
        digests.digest(write(tmp_path / f"{name}.txt", [name]))
    for digests in both:
        digests.save()
    assert len(json.loads((tmp_path / "digests.json").read_text())) == 2


@pytest.mark.parametrize("name", [*ARRAY_FILES, "corpus.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_entry_is_made_anew(name, damage, tmp_path):
    source, notes = Counting(DOCUMENTS), Notes()
    first = tokenize_source(settings(tmp_path / "c"), tokenizer, source)
    expected = first.train.tolist(), first.validation.tolist(), first.digest
    path = entries(tmp_path / "c")[0] / name
    if damage == "remove":
        path.unlink()
    elif damage == "cut":
        os.truncate(path, path.stat().st_size - 1)
    else:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    again = tokenize_source(settings(tmp_path / "c"), tokenizer, source, notes)
    assert (again.train.tolist(), again.validation.tolist(), again.digest) == expected
    assert source.times == 2
    assert "tokenizing again" in notes.notes[0]
    assert name in notes.notes[0]
    tokenize_source(settings(tmp_path / "c"), tokenizer, source)
    assert source.times == 2


class Unreadable(ListSource):
    def read(self, position=None):
        raise UserError("data.path", "x", "line 3 is no JSON")


def leaves_only_locks(folder: Path) -> bool:
    return [path.name for path in folder.iterdir()] == ["locks"]


def test_what_cannot_be_read_leaves_nothing(tmp_path):
    with pytest.raises(UserError):
        tokenize_source(settings(tmp_path / "a" / "c"), tokenizer, Unreadable([]))
    assert leaves_only_locks(tmp_path / "a" / "c")


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"data\.cache=.*file/c: cannot be written to"):
        tokenize_source(settings(tmp_path / "file" / "c"), tokenizer, ListSource(DOCUMENTS))


def test_a_full_disk_leaves_nothing(tmp_path):
    program = (
        "import resource, sys; from pathlib import Path; sys.path.insert(0, '.'); "
        "from tests.data.made_corpora import *; from tests.data.test_token_cache import *; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (500, resource.RLIM_INFINITY)); "
        "tokenize_source(settings(Path(sys.argv[1])), tokenizer, ListSource(DOCUMENTS))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "c")],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert f"{DiskError.__name__}: cannot write {tmp_path}" in done.stderr
    assert leaves_only_locks(tmp_path / "c")


@pytest.mark.slow
def test_who_waits_goes_on_when_the_other_is_interrupted(tmp_path):
    first = slow_process(tmp_path / "c", 60)
    assert first.stdout.readline() == "reading\n"
    second = slow_process(tmp_path / "c", 0)
    assert second.stdout.readline().startswith(f"waiting for process {first.pid}")
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=60)
    output, _ = second.communicate(timeout=60)
    assert second.returncode == 0
    corpus = tokenize_source(settings(tmp_path / "c"), tokenizer, Unreadable(DOCUMENTS))
    assert output.split() == ["reading", corpus.digest]


SLOW_PROGRAM = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start background jobs without it
sys.path.insert(0, ".")
from tests.data.made_corpora import *
from tests.data.test_token_cache import *

class Slow(Counting):
    def read(self, position=None):
        print("reading", flush=True)
        time.sleep(float(sys.argv[2]))
        return super().read(position)

class Heard(DataListener):
    def message_logged(self, text):
        print(text, flush=True)

corpus = tokenize_source(settings(Path(sys.argv[1])), tokenizer, Slow(DOCUMENTS), Heard())
print(corpus.digest, flush=True)
"""


def slow_process(folder, seconds):
    command = [sys.executable, "-c", SLOW_PROGRAM, str(folder), str(seconds)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )


def test_a_killed_process_leaves_nothing_in_the_way(tmp_path):
    process = slow_process(tmp_path / "c", 60)
    assert process.stdout.readline() == "reading\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not entries(tmp_path / "c")
    assert list((tmp_path / "c").glob(".*.partial"))
    tokenize_source(settings(tmp_path / "c"), tokenizer, ListSource(DOCUMENTS))
    assert len(entries(tmp_path / "c")) == 1
    assert not list((tmp_path / "c").glob(".*.partial"))


@pytest.mark.slow
def test_of_two_at_once_one_tokenizes_and_the_other_waits(tmp_path):
    first = slow_process(tmp_path / "c", 2)
    assert first.stdout.readline() == "reading\n"
    source, notes = Counting(DOCUMENTS), Notes()
    corpus = tokenize_source(settings(tmp_path / "c"), tokenizer, source, notes)
    output, _ = first.communicate(timeout=60)
    assert source.times == 0
    assert output.strip() == corpus.digest
    assert f"waiting for process {first.pid}" in notes.notes[0]


def test_what_was_used_longest_ago_goes_first(tmp_path):
    folder = tmp_path / "c"
    made = []
    for number in range(3):
        source = ListSource([f"{number} {text}" for text in DOCUMENTS])
        tokenize_source(settings(folder), tokenizer, source)
        made += [path for path in entries(folder) if path not in made]
    for age, path in zip((100, 300, 200), made, strict=True):
        os.utime(path, (time.time() - age,) * 2)
    size = sum(path.stat().st_size for path in made[0].iterdir())
    mapped = tokenize_source(settings(folder), tokenizer, ListSource([f"1 {t}" for t in DOCUMENTS]))
    expected = mapped.train.tolist()
    os.utime(made[1], (time.time() - 300,) * 2)
    last = ListSource([f"3 {text}" for text in DOCUMENTS])
    tokenize_source(settings(folder, cache_gb=3.5 * size / 1e9), tokenizer, last)
    assert set(made) - set(entries(folder)) == {made[1]}
    assert len(entries(folder)) == 3
    assert mapped.train.tolist() == expected  # who reads it keeps it
    tokenize_source(settings(folder, cache_gb=1e-9), tokenizer, ListSource(["a"] * 10))
    assert len(entries(folder)) == 1


def test_partial_entries_that_are_being_written_stay(tmp_path):
    folder = tmp_path / "c"
    key = "abc0" * 8
    (folder / "locks").mkdir(parents=True)
    (folder / f".{key}.partial").mkdir()
    with acquire_lock(folder / "locks" / key):
        tokenize_source(settings(folder), tokenizer, ListSource(DOCUMENTS))
        assert (folder / f".{key}.partial").exists()
    tokenize_source(settings(folder), tokenizer, ListSource(DOCUMENTS))
    assert not (folder / f".{key}.partial").exists()


def test_what_is_not_the_caches_own_is_left_alone(tmp_path):
    folder = tmp_path / "c"
    others = [folder / name for name in ("datasets", "backup", "0" * 32, ".mine.partial", "f" * 31)]
    for other in others:
        other.mkdir(parents=True)
        (other / "thesis.tex").write_bytes(b"precious" * 1000)
    for text in ("a", "b"):
        tokenize_source(settings(folder, cache_gb=1e-9), tokenizer, ListSource([text] * 10))
    assert all((other / "thesis.tex").exists() for other in others)
    assert len(set(entries(folder)) - set(others)) == 1


def test_the_sources_of_a_run_do_not_make_room_for_each_other(tmp_path, monkeypatch):
    sources = {name: Counting([f"{name} {text}" for text in DOCUMENTS]) for name in "ab"}
    tokenize_source(settings(tmp_path / "c"), tokenizer, ListSource(DOCUMENTS))
    for _ in range(3):
        open_run_data(
            settings(tmp_path / "c", cache_gb=1e-9), tokenizer, sources, [5000, 5000],
            seed=0, sequence_length=16, validation_samples=2, listener=DataListener(),
        )  # fmt: skip
        assert [source.times for source in sources.values()] == [1, 1]
    assert len(entries(tmp_path / "c")) == 2


MEMORY_PROGRAM = """
import sys
from pathlib import Path
import numpy as np
from growlm.data import PackedSamples
from growlm.data.memory_map import map_array
from growlm.data.token_stream import ShuffledDocuments

folder, window = Path(sys.argv[1]), int(sys.argv[2])
np.zeros(10**8, np.uint16).tofile(folder / "tokens")
np.arange(1000, 10**8 + 1, 1000).tofile(folder / "ends")
tokens, ends = (map_array(folder / n, np.dtype(d)) for n, d in (("tokens", "u2"), ("ends", "i8")))
samples = PackedSamples(ShuffledDocuments(tokens, ends, window, 0), 1 << 16)
samples[0]

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

before = resident()
for i in range(10**8 // (1 << 16)):
    samples[i]
print(resident() - before)
"""


@pytest.mark.parametrize("window", slow(1, 1000))
def test_reading_a_corpus_does_not_take_its_size_in_memory(window, tmp_path):
    command = [sys.executable, "-c", MEMORY_PROGRAM, str(tmp_path), str(window)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 3e7  # of 2e8 bytes


def test_progress_says_documents_and_speed(tmp_path, monkeypatch):
    monkeypatch.setattr("growlm.data.preparation.REPORT_INTERVAL_S", 0.0)
    notes = Notes()
    path = write(tmp_path / "x.jsonl.gz", [os.urandom(99).hex() for _ in range(5000)])
    tokenize_source(
        settings(tmp_path / "c"), tokenizer, TextFiles(str(path), "text", "line"), notes
    )
    task, share, note = notes.tasks[-1]
    assert task == f"tokenizing {path}"
    assert share == 1.0
    assert note.startswith("5,000 documents, 990 kB, ")
    assert note.endswith(" MB/s")
    shares = [share for _, share, _ in notes.tasks]
    assert shares == sorted(shares)


def test_only_white_space_is_refused(tmp_path):
    with pytest.raises(UserError, match="contains only white space"):
        tokenize_source(settings(tmp_path / "c"), tokenizer, ListSource([]))
    assert not entries(tmp_path / "c")
