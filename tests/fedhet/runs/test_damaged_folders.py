"""Run folders with altered, truncated or deleted files: the same bits, or an error that names the file."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from fedhet.cli import main
from fedhet.config import composition
from fedhet.deployment.live_run import live
from fedhet.flower.client_state import ClientStateStore
from fedhet.flower.compat import claim_identity
from fedhet.runs import runner
from fedhet.runs.result import Result, row_digest
from fedhet.runs.session import Session
from fedhet.runs.write_ahead_log import JournalError
from fedhet.system.atomic_file import DamagedError
from strategies.schedules.sync import Sync

found = importlib.util.spec_from_file_location("small_grid", Path(__file__).parents[1] / "small_grid.py")
small = importlib.util.module_from_spec(found)
found.loader.exec_module(small)

QUICK = ["debug=quick", "fleet=homogeneous", "fleet.clients=3", "model=softmax", "strategy=scaffold", "workers=0",
         "stop.versions=6", "stop.seconds=null", "stop.tasks=null", "checkpoint.every_seconds=0.0"]  # fmt: skip
SAME = ("weights_sha256", "events_sha256", "metrics_sha256", "accuracy", "updates", "bytes_up", "bytes_down")


def flip(at):
    def change(path):
        data = bytearray(path.read_bytes())
        data[min(int(at * len(data)), len(data) - 1)] ^= 1
        path.write_bytes(data)

    return change


def cut(share):
    return lambda path: path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


CHANGES = {
    "first byte": flip(0.0), "middle byte": flip(0.5), "last byte": flip(1.0),
    "cut to half": cut(0.5), "emptied": cut(0.0), "deleted": Path.unlink,
}  # fmt: skip


def damaged(folder, copy):
    """Copies of a folder with one file changed, one way after the other."""
    files = [p.relative_to(folder) for p in sorted(folder.rglob("*")) if p.is_file() and p.stat().st_size]
    for name in files:
        for what, change in CHANGES.items():
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(folder, copy)
            change(copy / name)
            yield f"{what} of {name}", copy


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run, and one that was interrupted after some checkpoints."""
    folder = tmp_path_factory.mktemp("runs")
    whole = runner.run(composition.compose(QUICK), folder / "whole").row
    with pytest.MonkeyPatch.context() as patch:
        saves, save = [], Session.save

        def interrupted(session):
            save(session)
            saves.append(session)
            if len(saves) == 12:
                raise KeyboardInterrupt

        patch.setattr(Session, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            runner.run(composition.compose(QUICK), folder / "broken")
    return folder, whole


def test_a_damaged_run_folder_never_gives_another_result(runs, tmp_path, monkeypatch):
    folder, whole = runs
    monkeypatch.setattr(runner, "write_report", lambda path: None)
    monkeypatch.setattr(Session, "save", lambda session: None)
    refused = []
    for what, copy in damaged(folder / "broken", tmp_path / "copy"):
        try:
            row = runner.resume(copy).row
        except (DamagedError, runner.RunFolderError) as error:
            refused.append(what)
            assert str(copy) in str(error) and len(str(error)) > 60, (what, str(error))
        else:
            assert {key: row[key] for key in SAME} == {key: whole[key] for key in SAME}, what
            assert (copy / "metrics.jsonl").read_bytes() == (folder / "whole" / "metrics.jsonl").read_bytes(), what
    assert len(refused) > 50
    for what in ("middle byte of config.yaml", "cut to half of metrics.jsonl", "middle byte of events.jsonl"):
        assert what in refused


def test_an_untouched_one_goes_on_to_the_same_bits(runs, tmp_path):
    folder, whole = runs
    shutil.copytree(folder / "broken", tmp_path / "copy")
    (tmp_path / "copy" / "checkpoint" / "000000000009-00000003.part").mkdir()  # of a checkpoint that was not completed
    row = runner.resume(tmp_path / "copy").row
    assert {key: row[key] for key in SAME} == {key: whole[key] for key in SAME}


def test_a_finished_run_whose_files_changed_is_not_used(runs, tmp_path, capsys):
    folder, _ = runs
    for what, copy in damaged(folder / "whole", tmp_path / "copy"):
        name = what.rpartition(" ")[2]
        to = ["--to", "merged", "--out", str(tmp_path / "merged")]
        for command, more in ((["run", "--resume"], []), (["evaluate"], []), (["export"], to), (["report"], [])):
            if name == "report.html" or name.startswith("checkpoint/"):
                continue
            if what == "deleted of result.json" or (command[0] in ("export", "report") and not what.startswith("cut")):
                continue
            code = main.main([*command, str(copy), *more])
            out, err = capsys.readouterr()
            assert code == 2 and name in err and not out, (command, what, err)
            assert not (tmp_path / "merged").exists()
        if name == "model.safetensors" and what.startswith("middle"):
            code = main.main(["run", *QUICK, "model=checkpoint", "model@model.model=softmax", f"model.path={copy}",
                             "--out", str(tmp_path / "next")])  # fmt: skip
            assert code == 2 and "is not what the run wrote" in capsys.readouterr().err
            assert not (tmp_path / "next").exists()


def test_an_edited_configuration_is_reported(runs, tmp_path, capsys):
    folder, _ = runs
    shutil.copytree(folder / "broken", tmp_path / "copy")
    path = tmp_path / "copy" / "config.yaml"
    path.write_text(path.read_text().replace("versions: 6", "versions: 7"))
    assert main.main(["run", "--resume", str(tmp_path / "copy")]) == 2
    assert "stop.versions=7, was 6" in capsys.readouterr().err


def test_a_damaged_live_run_never_gives_another_result(tmp_path):
    """The folder as a kill would leave it, with its write-ahead log."""
    claim_identity(1)

    def started(folder, disks, every=1e9, **grid):
        e = small.experiment(Sync(), control=True, checkpoint_every=every)
        net = small.SmallGrid(small.counting_app(e, []), small.contexts(disks), **grid)
        return live(e, folder, net, wanted=4, poll=1e-4, resume=True).row

    whole = started(tmp_path / "quiet", tmp_path / "quiet-disks")
    for every, pulls in ((1e9, 14), (0.0, 14)):
        folder, calls = tmp_path / f"run-{pulls}-{every}", []

        def killed(folder=folder, calls=calls, pulls=pulls):
            calls.append(1)
            if len(calls) == pulls:
                shutil.copytree(folder, folder.with_suffix(".killed"))
                shutil.copytree(tmp_path / "disks", folder.with_suffix(".disks"))
                raise small.Killed

        shutil.rmtree(tmp_path / "disks", ignore_errors=True)
        with pytest.raises(small.Killed):
            started(folder, tmp_path / "disks", every, before_pull=killed)
        refused = []
        for what, copy in damaged(folder.with_suffix(".killed"), tmp_path / "copy"):
            disks = tmp_path / "copied-disks"
            shutil.rmtree(disks, ignore_errors=True)
            shutil.copytree(folder.with_suffix(".disks"), disks)
            try:
                row = started(copy, disks)
            except (DamagedError, JournalError) as error:
                refused.append(what)
                assert len(str(error)) > 60, (what, str(error))
            else:
                same = ("weights_sha256", "updates", "accuracy")
                assert {key: row[key] for key in same} == {key: whole[key] for key in same}, what
        for what in ("deleted of journal.db", "emptied of journal.db-wal", "middle byte of journal.db-wal"):
            assert what in refused, what
        kept = "payloads" if every else "checkpoint"
        assert any(kept in what and "middle" in what for what in refused)


def test_a_device_does_not_go_on_with_memories_that_were_altered(tmp_path):
    claim_identity(1)
    e = small.experiment(Sync(), versions=2, control=True)
    disks = small.contexts(tmp_path / "disks")
    live(e, tmp_path / "run", small.SmallGrid(small.counting_app(e, []), disks), wanted=4, poll=1e-4)
    [path] = (tmp_path / "disks" / "10" / "runs").glob("*.keep")
    keep, whole = ClientStateStore(path.parent), path.read_bytes()
    assert keep.read(path.stem).memories
    for what in ("first byte", "middle byte", "last byte", "cut to half", "emptied"):
        path.write_bytes(whole)
        CHANGES[what](path)
        with pytest.raises(DamagedError, match="delete it"):
            keep.read(path.stem)


def test_a_result_row_without_its_hash_is_refused_unless_it_is_of_the_first_kind(runs, tmp_path):
    _, whole = runs
    for row, fine in (
        ({**whole, "schema": 1, "config_sha256": None}, True),
        ({k: v for k, v in whole.items() if k != "sha256"}, False),
    ):
        (tmp_path / "result.json").write_text(json.dumps(row))
        if fine:
            assert runner.resume(tmp_path).row["weights_sha256"] == whole["weights_sha256"]
        else:
            with pytest.raises(DamagedError, match=r"result\.json"):
                runner.resume(tmp_path)


def test_a_row_of_before_is_read_by_present_names(runs, tmp_path):
    _, whole = runs
    former = {k: v for k, v in whole.items() if k not in ("mlp_backend", "sum_backend", "sha256")}
    former["small_steps"] = "torch (no C compiler)"
    (tmp_path / "result.json").write_text(json.dumps({**former, "sha256": row_digest(former)}))
    row = Result.read(tmp_path).row
    assert row["mlp_backend"] == "torch (no C compiler)" and not {"small_steps", "sum_backend"} & set(row)
