import pandas as pd
import pytest
from test_hdf5 import write

from mil import hdf5
from mil.errors import MilError
from mil.features.validate import validate
from mil.progress import quiet
from mil.tables import write_table


def results(folder):
    rows = []
    for name in ("a", "b", "c"):
        write(folder / f"{name}.h5", rows=50)
        rows.append(
            {
                "slide_id": name,
                "state": "ok",
                "reason": "",
                "num_tiles": 50,
                "checksum": hdf5.verify(folder / f"{name}.h5"),
            }
        )
    rows.append({"slide_id": "d", "state": "no_mpp", "reason": "", "num_tiles": 0, "checksum": ""})
    write_table(pd.DataFrame(rows), folder / "shard0.csv")


def states(folder, **options):
    table = validate(folder, quiet(), **options)
    return dict(zip(table.path, table.state, strict=True))


def test_good_and_bad_are_told_apart_and_the_bad_set_aside(tmp_path):
    features = tmp_path / "sites" / "A" / "features"
    results(features)
    assert set(states(tmp_path).values()) == {"ok"}
    whole = (features / "a.h5").read_bytes()
    at = whole.index(hdf5.read(features / "a.h5", "features")[0].tobytes()[:32])
    (features / "a.h5").write_bytes(whole[:at] + b"\x01" + whole[at + 1 :])
    write(features / "b.h5", rows=60)
    (features / "c.h5").unlink()
    (features / ".e.h5.1234.partial").write_bytes(b"half")
    expected = {"a.h5": "broken", "b.h5": "replaced", "c.h5": "missing", ".e.h5.1234.partial": "leftover"}
    assert states(tmp_path) == {f"sites/A/features/{name}": state for name, state in expected.items()}
    assert states(tmp_path, repair=True) == {f"sites/A/features/{name}": state for name, state in expected.items()}
    assert [path.name for path in features.iterdir()] == ["shard0.csv"]
    aside = sorted(path.name for path in (tmp_path / "set_aside").rglob("*") if path.is_file())
    assert aside == [".e.h5.1234.partial", "a.h5", "b.h5"]
    assert set(states(tmp_path).values()) == {"missing"}


def test_a_folder_that_is_none_is_said(tmp_path):
    with pytest.raises(MilError, match="is not a folder"):
        validate(tmp_path / "nowhere", quiet())


def test_a_link_to_nowhere_is_broken_and_a_table_that_is_no_manifest_is_named(tmp_path):
    results(tmp_path)
    (tmp_path / "e.h5").symlink_to(tmp_path / "nowhere")
    assert states(tmp_path, repair=True)["e.h5"] == "broken"
    assert not (tmp_path / "e.h5").is_symlink()
    (tmp_path / "shard_of_mine.csv").write_text("slide_id,state\na,ok\n")
    row = validate(tmp_path, quiet()).set_index("path").loc["shard_of_mine.csv"]
    assert (row["state"], row["reason"].startswith("is no manifest"), row["bytes"]) == ("broken", True, 20)
    assert "it has slide_id, state; move it away" in row["reason"]
