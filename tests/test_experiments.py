"""Full-scale programs: same record for any number of ranks, and after a kill at any moment."""

import dataclasses
import doctest
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from collage.common import checkpoint
from experiments import convex_hull, program, sam
from tests.forked import PAPERS, Server, free_port

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow  # whole programs, killed and resumed


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.close()


def record(folder):
    found = json.loads((folder / "out" / "tiny.json").read_text())
    return found["numbers"]


def words(folder):
    return ["--tiny", "--runs", str(folder / "runs"), "--out", str(folder / "out")]


def run(server, folder, paper, ranks=1):
    ended = server(paper, words(folder), ranks)
    assert all(status == 0 for status, _, _ in ended), ended
    return record(folder)


@pytest.fixture(scope="module", params=PAPERS)
def reference(request, server, tmp_path_factory):
    """A paper, the record of its tiny run in one piece, its folder, and how many files it wrote."""
    folder = tmp_path_factory.mktemp("reference")
    ((status, said, writes),) = server(request.param, words(folder))
    assert status == 0, said
    return request.param, record(folder), folder, writes


def test_what_programs_share():
    assert doctest.testmod(program) == (0, 8)


def test_two_ranks_give_the_same_record(reference, server, tmp_path):
    paper, wanted, _, _ = reference
    assert run(server, tmp_path, paper, ranks=2) == wanted


def test_as_a_program_and_with_torchrun(tmp_path):
    """The same record from a command of its own as from two ranks."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    torchrun = [
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(free_port()),
    ]
    found = []
    for folder, start in ((tmp_path / "one", []), (tmp_path / "two", torchrun)):
        command = [sys.executable, *start, "-m", "experiments.sam", *words(folder)]
        subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True)
        found.append(record(folder))
    assert found[0] == found[1]


def test_a_full_disk_is_said_and_leaves_nothing_half_done(reference, server, tmp_path):
    """No file may grow beyond 64 bytes, as if the disk were full; then there is room again."""
    ((status, said, _),) = server(reference[0], words(tmp_path), full=True)
    assert status == 1 and "could not be written" in said and "untouched" in said, said[-2000:]
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_a_damaged_file_of_a_finished_job_is_named(reference, server, tmp_path):
    paper, _, folder, _ = reference
    shutil.copytree(folder / "runs", tmp_path / "runs")
    kept = [p for p in (tmp_path / "runs").rglob("*") if p.is_file()]
    for path in kept:
        path.write_bytes(b"{broken")
    ((status, said, _),) = server(paper, words(tmp_path))
    named = [path for path in kept if path.name in said]
    assert status == 1 and len(named) == 1, said[-2000:]
    assert "damaged" in said and "remove it" in said, said[-2000:]
    assert not (tmp_path / "out").exists() and named[0].read_bytes() == b"{broken"


def test_killed_and_resumed(reference, server, tmp_path):
    """SIGKILL at the first write of a file, at one a third on, and so on; then the identical record."""
    paper, wanted, _, writes = reference
    third = max(1, writes // 3)
    for n, when in ((1, "half"), (third, "after"), (third, "half"), (1, "whole"), (1, "after")):
        ((status, said, _),) = server(paper, words(tmp_path), die=(n, when))
        assert status == -signal.SIGKILL, (n, when, writes, said[-2000:])
        assert not (tmp_path / "out").exists()
    assert run(server, tmp_path, paper) == wanted
    left = [p.name for p in tmp_path.rglob("*.part")]
    assert left == [], "what a killed run left behind"


def test_resumes_from_every_epoch(tmp_path, monkeypatch):
    """Stop after each epoch's checkpoint in turn: the result never changes."""
    config = sam.PRESETS["tiny"]
    x, y, cut = sam.images(config)
    setting, device = {"noise": 0.4, "rho": 0.1, "decay": 0.0}, torch.device("cpu")
    whole = sam.run_job(config, setting, x, y, cut, tmp_path / "whole", device)
    save = checkpoint.save

    class Stopped(Exception):
        pass

    def stop(*args):
        save(*args)
        raise Stopped

    monkeypatch.setattr(checkpoint, "save", stop)
    for _ in range(config.epochs):
        with pytest.raises(Stopped):
            sam.run_job(config, setting, x, y, cut, tmp_path / "parts", device)
    assert sam.run_job(config, setting, x, y, cut, tmp_path / "parts", device) == whole


def test_damaged_checkpoint_is_named(tmp_path):
    config = sam.PRESETS["tiny"]
    x, y, cut = sam.images(config)
    setting, device = {"noise": 0.4, "rho": 0.0, "decay": 0.0}, torch.device("cpu")
    sam.run_job(config, setting, x, y, cut, tmp_path, device)
    result = next(tmp_path.glob("*.json"))
    result.unlink()
    result.with_suffix(".npz").write_bytes(b"broken")
    with pytest.raises(ValueError, match="damaged checkpoint"):
        sam.run_job(config, setting, x, y, cut, tmp_path, device)


def test_hull_job_resumes_from_every_chunk(tmp_path, monkeypatch):
    """Stop after each chunk of queries in turn; a damaged checkpoint is named."""
    config, device = convex_hull.PRESETS["tiny"], torch.device("cpu")
    setting = {"view": "centre crop", "d": 9, "seed": 0}
    x, z = convex_hull.images(config)
    whole = convex_hull.run_job(config, setting, x, z, tmp_path / "whole", device)
    assert 0 < whole["inside"][-1] < 1 and whole["sizes"][-1] == config.points
    save = checkpoint.save

    class Stopped(Exception):
        pass

    def stop(*args):
        save(*args)
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", stop)
        for _ in range(config.queries // config.chunk):
            with pytest.raises(Stopped):
                convex_hull.run_job(config, setting, x, z, tmp_path / "parts", device)
    assert convex_hull.run_job(config, setting, x, z, tmp_path / "parts", device) == whole
    result = next((tmp_path / "parts").glob("*.json"))
    result.unlink()
    result.with_suffix(".npz").write_bytes(b"broken")
    with pytest.raises(ValueError, match="damaged checkpoint"):
        convex_hull.run_job(config, setting, x, z, tmp_path / "parts", device)


def test_hull_views(monkeypatch):
    """Crops are centred, reductions are means, components keep distances, Gaussians are new."""
    config = convex_hull.PRESETS["tiny"]
    x = torch.arange(2 * 64, dtype=torch.float64).view(2, 1, 8, 8).sin()
    crop, _ = convex_hull.view(config, {"view": "centre crop", "d": 4}, x, x)
    assert torch.equal(crop, x[:, 0, 3:5, 3:5].flatten(1))
    small, _ = convex_hull.view(config, {"view": "smoothed and reduced", "d": 4}, x, x)
    assert torch.allclose(small[:, 0], x[:, 0, :4, :4].mean((1, 2)))
    data = torch.randn(40, 1, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    whole, _ = convex_hull.view(config, {"view": "principal components", "d": 9}, data, data)
    flat = data.flatten(1)
    assert torch.allclose(whole @ whole.T, (flat - flat.mean(0)) @ (flat - flat.mean(0)).T)
    a, b = convex_hull.view(config, {"view": "gaussian", "d": 3, "seed": 0}, None, None)
    assert a.shape == (config.points, 3) and b.shape == (config.queries, 3)
    views = {s["view"] for s in convex_hull.settings(config, 1)}
    assert views == set(config.views)
    with pytest.raises(SystemExit):
        convex_hull.main(["--preset", "imagenet"])


def test_residual_networks_resume(tmp_path):
    """The optimiser route: a stopped state, loaded into fresh networks, goes on identically."""
    config = sam.dataclasses.replace(sam.PRESETS["tiny"], network="resnet32", seeds=1)
    setting, shape = {"rho": 0.1, "decay": 1e-3}, (1, 8, 8)
    g = torch.Generator().manual_seed(0)
    data = [(torch.randn(1, 8, *shape, generator=g), torch.randint(10, (1, 8), generator=g))
            for _ in range(4)]  # fmt: skip
    device = torch.device("cpu")
    whole = sam.Singles(config, shape, setting, device)
    for x, y in data:
        whole.step(x, y, 1.0)
    first = sam.Singles(config, shape, setting, device)
    for x, y in data[:2]:
        first.step(x, y, 1.0)
    checkpoint.save(tmp_path / "c.npz", first.state(), {})
    second = sam.Singles(config, shape, setting, device)
    second.load(checkpoint.load(tmp_path / "c.npz")[0])
    for x, y in data[2:]:
        second.step(x, y, 1.0)
    for a, b in zip(whole.state().values(), second.state().values(), strict=True):
        assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))
    assert whole.guess(data[0][0]).shape == (1, 8)
    params = sum(p.numel() for p in sam.resnet32(3).parameters())
    assert 460_000 < params < 470_000
    params = sum(p.numel() for p in sam.resnet32(3, 64, 2, 4).parameters())
    assert 10.5e6 < params < 11.5e6


@pytest.mark.parametrize("network", ["resnet8", "mixer"])
def test_small_networks_with_label_noise_and_mixup(network, tmp_path, monkeypatch):
    """A record has both methods with and without mixup; mixup changes what is learned, and a seed alone."""
    config = sam.dataclasses.replace(sam.PRESETS["tiny"], network=network, mixup=(0.0, 1.0), train=100,
                                     epochs=2)  # fmt: skip
    monkeypatch.setitem(sam.PRESETS, "tiny", config)
    sam.main(["--tiny", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path)])
    numbers = json.loads((tmp_path / "tiny.json").read_text())["numbers"]
    names = ["SGD", "SAM", "SGD with mixup", "SAM with mixup"]
    assert [*numbers["table"][0]] == ["wrong labels", *names, *(f"{n}, tuned decay" for n in names)]
    runs = {(r["rho"], r["mixup"]): r["test"] for r in numbers["runs"]}
    assert len(runs) == 4 and runs[0.0, 0.0] != runs[0.0, 1.0]
    assert set(numbers["sweeps"].values()) == {1}


def test_mixup_mixes_pictures_as_it_mixes_labels():
    """A picture that says its label says its shares afterwards; each seed draws from its own generator."""
    y = torch.randint(10, (2, 50), generator=torch.Generator().manual_seed(0))
    x = sam.F.one_hot(y, 10).float().view(2, 50, 1, 2, 5)
    found, shares = sam.mixed(x, y, 0.4, [torch.Generator().manual_seed(s) for s in (1, 2)])
    assert torch.allclose(found.view(2, 50, 10), shares, atol=1e-6)
    assert torch.allclose(shares.sum(-1), torch.ones(2, 50)) and bool((shares.amax(-1) < 1).any())
    alone = sam.mixed(x[1:], y[1:], 0.4, [torch.Generator().manual_seed(2)])[1]
    assert torch.equal(alone[0], shares[1])


def test_a_mixer_sees_every_patch():
    """Shapes, and that no pixel is without a say; the same picture in another order is another picture."""
    net, x = sam.mixer(1, 28), torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    x.requires_grad_()
    out = net(x)
    assert out.shape == (3, 10)
    out.square().sum().backward()
    assert bool((x.grad != 0).all())
    assert not torch.allclose(net(x.flip(-1)), out, atol=1e-3)


def test_pictures_are_shifted_one_by_one():
    """Every picture is one of its own 2 x 81 flips and shifts, and a seed draws alone."""
    x = torch.randn(2, 30, 1, 6, 5, generator=torch.Generator().manual_seed(0))
    found = sam.augment(x, sam.moves(30, [torch.Generator().manual_seed(s) for s in (3, 4)]))
    alone = sam.augment(x[1:], sam.moves(30, [torch.Generator().manual_seed(4)]))
    assert found.shape == x.shape and torch.equal(found[1], alone[0])
    shifts = set()
    for i in range(30):
        padded = torch.nn.functional.pad(torch.stack([x[0, i], x[0, i].flip(-1)]), (4, 4, 4, 4))
        at = [(f, r, c) for f in range(2) for r in range(9) for c in range(9)
              if torch.equal(padded[f, :, r : r + 6, c : c + 5], found[0, i])]  # fmt: skip
        assert at
        shifts.add(at[0])
    assert len(shifts) > 20


def test_bad_input():
    with pytest.raises(SystemExit):
        sam.main(["--tiny", "--seeds", "0"])
    with pytest.raises(SystemExit):
        sam.main(["--preset", "imagenet"])


def test_robots_are_what_gymnasium_says():
    """The batched adapter against the environments themselves, one of which ends early."""
    gymnasium = pytest.importorskip("gymnasium")
    pytest.importorskip("mujoco")
    from experiments.robots import Robots

    robots, g = Robots("Hopper-v5", 3), torch.Generator().manual_seed(0)
    state = robots.reset(3, g)
    seeds = torch.randint(2**31, (3,), generator=torch.Generator().manual_seed(0)).tolist()
    single = [gymnasium.make("Hopper-v5") for _ in range(3)]
    seen = [e.reset(seed=s)[0] for e, s in zip(single, seeds)]
    done = [False] * 3
    for t in range(60):
        assert all(torch.allclose(s, torch.tensor(x).float()) for s, x in zip(state, seen))
        action = torch.sin(torch.arange(9.0) + t).view(3, 3) * torch.tensor([[0.1], [1.0], [2.0]])
        step = robots.step(state, action)
        for i in range(3):
            if done[i]:
                assert step.reward[i] == 0 and not step.terminated[i]
                continue
            seen[i], r, out, late, _ = single[i].step(action[i].clamp(-1, 1).double().numpy())
            assert abs(float(step.reward[i]) - r) < 1e-4
            assert bool(step.terminated[i]) == out and bool(step.truncated[i]) == late
            done[i] = out or late
        state = step.state
    assert any(done)
    assert robots.longest == 1000 and robots.observations == 11 and robots.actions == 3


def test_swimmers_are_what_gymnasium_says():
    """Three at once against the environment itself, from its own beginnings; a step changes nothing it was given."""
    gymnasium = pytest.importorskip("gymnasium")
    pytest.importorskip("mujoco")
    from experiments.swimmer import Swimmer

    swimmers, single = Swimmer(), [gymnasium.make("Swimmer-v5") for _ in range(3)]
    seen = [e.reset(seed=s)[0] for s, e in enumerate(single)]
    state = torch.stack(
        [torch.tensor([0.0, *e.unwrapped.data.qpos, *e.unwrapped.data.qvel]) for e in single]
    )
    for t in range(50):
        observed = torch.tensor(np.array(seen)).float()
        assert torch.allclose(swimmers.observe(state), observed, atol=1e-5)
        action = 2 * torch.sin(torch.arange(6.0) + 0.3 * t).view(3, 2)
        before = state.clone()
        step = swimmers.step(state, action)
        assert torch.equal(state, before) and not bool(step.terminated.any() | step.truncated.any())
        for i, e in enumerate(single):
            seen[i], r, *_ = e.step(action[i].clamp(-1, 1).double().numpy())
            assert abs(float(step.reward[i]) - r) < 1e-5
        state = step.state
    fresh = swimmers.reset(1000, torch.Generator().manual_seed(0))
    assert bool((fresh[:, 0] == 0).all()) and 0.09 < float(fresh[:, 1:].abs().max()) <= 0.1


def test_search_keeps_an_even_share():
    """A short random search: whole episodes, the returns as they were, about the wanted number."""
    pytest.importorskip("mujoco")

    from experiments import decision_transformer as experiment
    from experiments.robots import search

    config = dataclasses.replace(experiment.PRESETS["hopper"], interactions=4000, kept=2000)
    data = search(config, lambda text: None)
    assert 300 < len(data) < 4000 and bool((data.actions.abs() <= 1).all())
    assert bool(data.totals.isfinite().all()) and bool(data.terminated.any())
    again = search(config, lambda text: None)
    assert torch.equal(again.states, data.states) and torch.equal(again.lengths, data.lengths)


def test_presets_are_those_of_the_records():
    """A field added to a config has not moved what another one holds."""
    from experiments import decision_transformer, pes

    checked = 0
    for module in (decision_transformer, pes):
        folder = ROOT / "results" / module.__name__.split(".")[1]
        for preset in module.PRESETS.values():
            if (path := folder / f"{preset.name}.json").exists():
                mine = json.loads(json.dumps(dataclasses.asdict(preset)))
                config = json.loads(path.read_text())["config"]
                if levels := config.get("levels"):  # a record of some of them
                    assert set(levels) <= set(mine["levels"]), preset.name
                    mine["levels"] = levels
                assert {k: mine[k] for k in config} == config, preset.name
                checked += 1
    assert checked > 10


@pytest.fixture(scope="module")
def hopping(tmp_path_factory):
    """A short career of an actor-critic, and the file that it left."""
    pytest.importorskip("mujoco")
    pytest.importorskip("stable_baselines3")
    from experiments.robots import career

    path = tmp_path_factory.mktemp("career") / "career.npz"
    return career("Hopper-v5", 400, path, every=120, episodes=2, progress=lambda text: None), path


def test_a_career_goes_on_where_it_was_stopped(hopping, tmp_path):
    """Stopped after a stage, an actor-critic becomes the same as one that was not."""
    from experiments.robots import career

    whole, _ = hopping
    quiet = {"every": 120, "episodes": 2, "progress": lambda text: None}
    part = career("Hopper-v5", 130, tmp_path / "part.npz", **quiet)
    assert 0 < len(part["stages"]) < len(whole["stages"])
    again = career("Hopper-v5", 400, tmp_path / "part.npz", **quiet)
    assert np.array_equal(again["actors"], whole["actors"])
    assert torch.equal(again["life"].states, whole["life"].states)
    assert torch.equal(again["worth"], whole["worth"])
    # A longer career begins with the shorter one; a file of other stages is refused.
    begun = career("Hopper-v5", 130, tmp_path / "part.npz", **quiet)
    assert np.array_equal(begun["actors"], part["actors"])
    assert torch.equal(begun["life"].rewards, part["life"].rewards)
    with pytest.raises(ValueError, match="wanted"):
        career("Hopper-v5", 130, tmp_path / "part.npz", **{**quiet, "every": 50})


def test_a_career_is_whole_episodes_as_they_were(hopping):
    """Played again in the environment, the recorded actions earn what was recorded."""
    gymnasium = pytest.importorskip("gymnasium")
    whole, _ = hopping
    life, stages = whole["life"], whole["stages"]
    assert stages[-1] == len(life) >= 400 and set(stages.tolist()) <= set(life.behind.tolist())
    assert len(whole["actors"]) == len(stages) and bool((life.actions.abs() <= 1).all())
    env = gymnasium.make("Hopper-v5").unwrapped
    env.reset(seed=0)
    checked = 0
    for i in range(0, len(life) - 1, 7):
        if not life.ends[i]:
            state = life.states[i].double().numpy()
            env.set_state(np.concatenate([[0.0], state[:5]]), state[5:])
            seen, reward, *_ = env.step(life.actions[i].double().numpy())
            assert np.allclose(seen, life.states[i + 1].numpy(), atol=1e-3)
            assert abs(reward - float(life.rewards[i])) < 1e-3
            checked += 1
    assert checked > 30


def test_levels_of_data(hopping):
    """medium, replay and expert are what they say, and pay late if they are to."""
    from experiments.robots import Robots, data_of, late

    whole, _ = hopping
    past = {**whole, "worth": torch.linspace(0, 3000, len(whole["worth"]))}  # it gets better
    levels = {level: data_of("Hopper-v5", past, level, 1500)[0]
              for level in ("medium", "replay", "expert")}  # fmt: skip
    _, (chance, medium, expert) = data_of("Hopper-v5", past, "replay", 1500)
    assert all(
        0 < mark < 500 for mark in (chance, medium, expert)
    )  # what was earned, not what chose
    wanted = chance + (3000 - chance) / 3
    stage = int((past["worth"] >= wanted).nonzero()[0])
    assert past["worth"][stage - 1] < wanted
    until = int(past["stages"][stage])
    assert torch.equal(levels["replay"].states, past["life"].states[:until])
    for level in ("medium", "expert"):
        assert 1500 <= len(levels[level]) < 2600
    data = levels["medium"]
    half = (
        int((levels["expert"].starts < 750).sum()) - 1
    )  # whole episodes of the medium actor's half
    steps = int(levels["expert"].behind[half - 1])
    assert torch.equal(levels["expert"].actions[:steps], data.actions[:steps])
    # What an actor means to do and its noise, as the network says, are what it did; no other actor's are.
    off = {}
    for i, weights in enumerate(past["actors"]):
        torch.nn.utils.vector_to_parameters(torch.from_numpy(weights), past["actor"].parameters())
        with torch.no_grad():
            mean, log_scale, _ = past["actor"].get_action_dist_params(data.states)
        away = (data.actions.clamp(-0.9999, 0.9999).atanh() - mean) / log_scale.exp()
        off[i] = float((away.square() / 2 + log_scale).mean())
        if i == stage:
            assert abs(float(away.mean())) < 0.05 and 0.9 < float(away.std()) < 1.1
    assert min(off, key=off.get) == stage
    paid = late(data)
    assert torch.allclose(paid.totals, data.totals) and bool(paid.terminated.all())
    assert int((paid.rewards != 0).sum()) == len(data.lengths)
    robots, prompt, g = Robots("Hopper-v5", 2, late=True), Robots("Hopper-v5", 2), torch.Generator()
    states = [r.reset(2, g.manual_seed(3)) for r in (robots, prompt)]
    total, steps = torch.zeros(2, 2), torch.zeros(2)
    for _ in range(200):
        for j, r in enumerate((robots, prompt)):
            step = r.step(states[j], torch.full((2, 3), 0.2))
            states[j], total[j] = step.state, total[j] + step.reward
            steps += (step.reward != 0) * (j == 0)
    assert torch.allclose(total[0], total[1]) and steps.tolist() == [1, 1]


def test_levels_end_to_end(hopping, tmp_path, monkeypatch):
    """Two levels of a career that is there, every method a few updates: one record of chosen rows."""
    from collage.common import checkpoint
    from experiments import decision_transformer as experiment

    arrays, meta = checkpoint.load(hopping[1])
    meta["worth"] = [1000.0 * i for i in range(len(meta["worth"]))]
    meta["setting"] |= {"every": 10_000, "episodes": 10}
    runs = tmp_path / "runs" / "hopper_levels"
    checkpoint.save(runs / "career.npz", arrays, meta)
    config = dataclasses.replace(
        experiment.PRESETS["hopper_levels"], levels=("replay", "medium late"), interactions=400,
        kept=300, seeds=1, width=8, layers=1, steps=2, clone_steps=2, iql_steps=2, episodes=2,
        asked=(0.5, 1.0))  # fmt: skip
    monkeypatch.setitem(experiment.PRESETS, "hopper_levels", config)
    folders = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path)]
    command = ["--preset", "hopper_levels", *folders]
    with pytest.raises(SystemExit) as stop:
        experiment.main([*command, "--levels", "medium"])  # which this preset has not
    assert stop.value.code == 2 and not list(tmp_path.glob("*.json"))
    experiment.main([*command, "--levels", "medium late"])
    first = json.loads((tmp_path / "hopper_levels.json").read_text())["numbers"]["table"]
    assert [r["data"] for r in first] == ["medium late"] * 6
    done = {p: p.stat().st_mtime_ns for p in runs.glob("*.json")}
    experiment.main(command)
    assert len(done) == 6 and all(p.stat().st_mtime_ns == t for p, t in done.items())
    content = json.loads((tmp_path / "hopper_levels.json").read_text())
    rows = content["numbers"]["table"]
    assert [r["data"] for r in rows] == ["replay"] * 6 + ["medium late"] * 6
    assert [r["method"] for r in rows[2:6]] == ["DT", "BC", "% BC", "IQL"]
    assert all(r["return"]["n"] == 1 for r in rows[2:6] + rows[8:])
    assert rows[2]["chosen"].startswith("asked for") and rows[6:] == first


def test_what_is_chosen_on_some_episodes_is_judged_on_others():
    """A target that was lucky once is shown with what it earned the second time."""
    from experiments import decision_transformer as experiment

    config = dataclasses.replace(experiment.PRESETS["hopper_levels"], levels=("medium",), seeds=2)

    def result(method, asked, first, other, **more):
        return {"size": "medium", "method": method, "asked": asked, **more,
                "likeliest": {"mean": first}, "judged": {"mean": other}}  # fmt: skip

    results = [result("DT", [1.0, 2.0], [50.0, 90.0], [80.0, 20.0]),
               result("DT", [1.0, 2.0], [60.0, 80.0], [80.0, 40.0]),
               result("BC", [0.0], [40.0], [44.0], share=1.0),
               result("BC", [0.0], [70.0], [60.0], share=0.1),
               result("BC", [0.0], [60.0], [99.0], share=0.25),
               result("IQL", [0.0], [10.0], [20.0], iql=(0.7, 3.0))]  # fmt: skip
    rows = experiment.levels_table(config, results, {"medium": (10.0, 40.0, 110.0)})
    got = {r["method"]: (r["chosen"], r["of the expert (%)"]) for r in rows}
    assert got["the medium actor"][1] == 30 and got["the expert"][1] == 100
    assert got["DT"][0] == "asked for 2" and got["DT"][1]["mean"] == 20
    assert got["BC"][0] == "BC" and got["% BC"] == ("10% BC", got["% BC"][1])
    assert got["% BC"][1]["mean"] == 50 and got["IQL"][1]["mean"] == 10


@pytest.mark.parametrize("setting", [{"K": 7, "lr": 1e-3}, {"K": 7, "L": 9, "lr": 1e-3},
                                     {"K": 1, "L": 10, "lr": 1e-3}, {"eps": 0.1}])  # fmt: skip
def test_every_update_of_a_life_is_recorded_once(setting):
    from experiments import bmg

    config = dataclasses.replace(bmg.PRESETS["tiny"], period=20, phases=2)
    rewards, bonuses = bmg.live(config, setting, 2, 0, torch.device("cpu"))
    assert rewards.shape == bonuses.shape == (40, 2) and bool((bonuses > 0).all())
    assert len(set(rewards[:, 0].tolist())) > 8  # rewards of rollouts, not one repeated


@pytest.mark.parametrize("setting", [{"K": 3, "lr": 1e-3, "bonus": 0.2}, {"K": 1, "L": 4, "lr": 1e-3},
                                     {"eps": 0.1}])  # fmt: skip
def test_lives_without_chance_begin_alike_for_every_method(setting):
    from experiments import bmg

    config = dataclasses.replace(bmg.PRESETS["exact"], period=10, phases=2)
    rewards, bonuses = bmg.live_exactly(config, setting, 3, seed=5)
    first, begun = bmg.live_exactly(config, {"K": 1, "lr": 1e-2}, 3, seed=5)
    assert rewards.shape == bonuses.shape == (20, 3)
    assert torch.equal(rewards[0], first[0]), "the same policies"
    assert "eps" in setting or torch.equal(bonuses[0], begun[0])


def test_a_recorded_sweep_is_chosen_from_as_if_run_again(tmp_path):
    from experiments import pes

    def record(*more):
        pes.main(
            ["--tiny", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out"), *more]
        )
        return json.loads((tmp_path / "out" / "tiny.json").read_text())

    whole = record()
    shutil.rmtree(tmp_path / "runs")
    again = record("--sweep", str(tmp_path / "out"))
    assert again["numbers"].pop("sweep of") == whole["commit"]
    assert again["numbers"] == whole["numbers"] and whole["commit"][:7] in again["note"]
    assert len(list((tmp_path / "runs").rglob("*.json"))) == 3, "only what was chosen ran again"
    changed = dataclasses.replace(pes.PRESETS["tiny"], horizon=4)
    with pytest.raises(ValueError, match="another horizon"):
        pes.recorded(changed, tmp_path / "out")


def test_at_rate_0_the_bonus_stays_and_both_methods_live_alike():
    from experiments import bmg

    config = dataclasses.replace(bmg.PRESETS["exact_still"], period=10, phases=2)
    lives = [bmg.live_exactly(config, *bmg.tries(config, m), 3, seed=5) for m in config.methods]
    for rewards, bonuses in lives:
        assert torch.equal(bonuses, bonuses[:1].expand_as(bonuses))
        assert torch.equal(rewards, lives[0][0])


def test_every_method_of_a_record_has_as_many_settings():
    from experiments import bmg

    for config in bmg.PRESETS.values():
        assert len({len(bmg.tries(config, m)) for m in config.methods}) == 1, config.name


def test_waves_are_judged_and_divergence_is_a_number():
    from experiments import bmg

    config = dataclasses.replace(bmg.PRESETS["waves"], meta_steps=20, test=2)
    for setting, fine in (({"K": 2, "lr": 1e-3, "inner": 0.01}, True),
                          ({"K": 1, "L": 3, "lr": 1e-3, "inner": 0.01}, True),
                          ({"K": 1, "L": 3, "lr": 1e-3, "inner": 0.01, "reptile": True}, True),
                          ({"K": 5, "lr": 1e-3, "inner": 50.0}, False)):  # fmt: skip
        found = bmg.waves(config, setting, True, torch.device("cpu"))
        assert len(found["errors"]) == 2 and found["meta-steps"] == [20, 20]
        assert (found["score"] > -100) == fine
        json.dumps(found, allow_nan=False)
