"""Pong from shuffled patches of its screen, some of them missing: the paper's game.

    python -m experiments.pong              # an hour and a half on one core
    torchrun --nproc-per-node 2 -m experiments.pong
    python -m experiments.pong --tiny       # seconds, for tests

The Arcade Learning Environment ships the game. A teacher that reads the machine's memory steers for
where the ball will be, and students of several kinds learn from it what to do on the pictures they come
to see (DAgger, Ross et al. 2011): the paper's agent, a code of 20 x 20 rows from 196 patches and
convolutions on it; the same on a screen with a wallpaper, whose slopes tell a patch's row and
column, with nothing missing in its lessons or with half; and an ordinary convolutional network. A fifth
is the paper's agent again, which plays the same sixteen games in all rounds, without a random move and
without the score, so that nothing but the game itself tells the time: it can learn them by heart. The
teacher and the agents that learned with nothing missing play those games, too. A job is one student. It
saves after each round of games; the same command started again goes on there.
"""

import dataclasses
import itertools

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from collage import runtime
from collage.sensory_neuron import PatchNeuron
from collage.sensory_neuron.images import patches
from experiments import program

SIDE, PATCH = 84, 6  # pixels
COUNT = (SIDE // PATCH) ** 2  # patches of a screen
CONTRAST = 100
SCORE = 10  # rows
MOVES = (0, 3, 4)  # of the joystick: none; right and left, which move the bat up and down
OTHERS = "shuffled, games that it never saw"
RANDOM = "shuffled, 2 % of the moves random"
STILL = "shuffled, no random move"
ANEW = "shuffled anew on the way"
FORMATS = {"points won (%)": "{:.0f}", "difference": "{:+.1f}"}


@dataclasses.dataclass(frozen=True)
class Config:
    name: str = "pong"
    students: tuple = (("patches", 0.0), ("papered", 0.0), ("papered", 0.5), ("by heart", 0.0),
                       ("ordinary", 0.0))  # fmt: skip
    # kinds, and the share of the screen that is missing in their lessons
    rounds: int = 6
    games: int = 16  # at once
    decisions: int = 500  # of a game in a round
    updates: int = 1200  # after each round
    batch: int = 64
    lr: float = 5e-4
    chance: float = 0.05  # of a random move while data are collected
    missing: tuple = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)  # shares of the patches, in the tests
    longest: int = 1500  # decisions of a test game, but for those known by heart
    every: int = 200  # decisions until a new order, in the test with new orders


PRESETS = {
    "pong": Config(),
    "tiny": Config("tiny", rounds=2, games=2, decisions=12, updates=2, batch=4, missing=(0.0, 0.5),
                   longest=15, every=5),
}  # fmt: skip


class Games:
    """n games of Pong in step, each decision held for four of the machine's frames.

    After `step`: frames (n, 4, 84, 84) uint8, the last four screens, each the brighter of two frames in a
    row; memory (n, 128); reward (n,): +1 for a point, -1 for one lost. A game begins after up to 30
    frames of waiting, and one that is over stands still.
    """

    def __init__(self, n):
        from ale_py import ALEInterface, LoggerMode, roms

        ALEInterface.setLoggerMode(LoggerMode.Error)
        self.machines = [ALEInterface() for _ in range(n)]
        for machine in self.machines:
            machine.setFloat("repeat_action_probability", 0.0)
            machine.loadROM(roms.get_rom_path("pong"))

    def reset(self, g, waits=None):
        """Begin anew, with waits drawn from a numpy generator where none are given."""
        waits = g.integers(1, 31, len(self.machines)) if waits is None else waits
        for machine, wait in zip(self.machines, waits, strict=True):
            machine.reset_game()
            for _ in range(wait):
                machine.act(0)
        screens = np.stack([m.getScreenGrayscale() for m in self.machines])
        self.frames = small(screens)[:, None].repeat(1, 4, 1, 1)

    @property
    def memory(self):
        return np.stack([m.getRAM() for m in self.machines]).astype(np.int64)

    def step(self, moves):
        """moves (n,) from 0, 1, 2: nothing, up, down -> reward (n,)."""
        reward, screens = np.zeros(len(self.machines)), []
        for i, machine in enumerate(self.machines):
            seen = []
            for _ in range(4):
                if not machine.game_over():
                    reward[i] += machine.act(MOVES[moves[i]])
                seen.append(machine.getScreenGrayscale())
            screens.append(np.maximum(*seen[-2:]))
        self.frames = torch.cat([self.frames[:, 1:], small(np.stack(screens))[:, None]], 1)
        return reward


def small(screens):
    """Screens (n, 210, 160) as pictures (n, 84, 84), each pixel the mean of the area that it covers."""
    area = F.interpolate(torch.from_numpy(screens)[:, None].float(), (SIDE, SIDE), mode="area")
    return area[:, 0].round().to(torch.uint8)


class Teacher:
    """Moves from the machine's memory: to where the ball will come, edge first, so that it flies off steeply.

    The cells of the memory: ball's column 49 and row 54, the right bat's row 51. Four numbers were found
    by trying some hundred sets of them; with the best it is level with the machine's own player or better.
    """

    ABOVE, IDLE, AHEAD, REST = 6.1, 4.3, 0.22, 147
    TOP, BOTTOM, BAT = 44, 207, 188  # rows between which the ball flies; the bat's column

    def __init__(self):
        self.before = None

    def __call__(self, memory):
        """memory (n, 128) -> moves (n,)."""
        x, y, bat = memory[:, [49, 54, 51]].T  # copied: the caller may go on writing
        before = self.before if self.before is not None else (x, 0 * y, bat)
        self.before = x, y, bat
        dx, dy = x - before[0], y - before[1]
        comes = (y > 0) & (before[1] > 0) & (dx > 0)
        span = self.BOTTOM - self.TOP
        there = y + dy * (self.BAT - x) / np.maximum(dx, 1) - self.TOP  # if nothing were in its way
        there = np.abs((there + span) % (2 * span) - span) + self.TOP  # with the walls
        goal = np.where(comes, there - self.ABOVE, self.REST)
        off = goal - (bat + self.AHEAD * (bat - before[2]))
        return np.where(off < -self.IDLE, 1, np.where(off > self.IDLE, 2, 0))


class Student(nn.Module):
    """Values (B, 3) of the moves, from patches (B, P, 4, 36), as `seen_through` shows them, and the last move (B, 3)."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        if kind != "ordinary":
            self.eye = PatchNeuron(
                PATCH, 4, 3, codes=400, dim=8, message=32, values=32, affine=True
            )
            first, size = [nn.Conv2d(32, 64, 4, 2)], 7
        else:  # Mnih et al. 2015
            first, size = [nn.Conv2d(4, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2)], 7
        self.head = nn.Sequential(*first, nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten(),
                                  nn.Linear(64 * size**2, 512), nn.ReLU(), nn.Linear(512, 3))  # fmt: skip

    def forward(self, seen, last):
        if self.kind != "ordinary":
            code = self.eye(seen, last)  # (B, 400, 32)
            return self.head(code.mT.reshape(len(seen), 32, 20, 20))
        n = SIDE // PATCH
        picture = seen.view(-1, n, n, 4, PATCH, PATCH).permute(0, 3, 1, 4, 2, 5)
        field = 87 / 255  # what the empty screen is like: zero is easier to learn from
        return self.head(4 * (picture.reshape(-1, 4, SIDE, SIDE) - field))


def seen_through(frames, order, hidden, kind):
    """Pictures (B, 4, 84, 84) uint8 as patches in an order (B, 196), without the first `hidden` of them;
    or in an order for each of the four pictures (B, 196, 4).

    By heart: without the score. An ordinary network needs all: the missing ones are black. The others see them in a strong contrast:
    keys are changes, and large ones make their attention sharp from the first update (with a contrast of 1
    it begins as a mean over all patches, and 1,000 updates teach nothing); values, each brought to mean 0
    and variance 1, are the same.
    """
    frames = frames.float() / 255
    if kind == "by heart":
        frames[:, :, :SCORE] = 0
    cut = patches(frames, PATCH)
    if kind == "papered":
        cut = cut + paper()[:, None]
    order = order[:, :, None] if order.dim() == 2 else order
    cut = cut.gather(1, order[..., None].expand_as(cut))
    if kind != "ordinary":
        return CONTRAST * cut[:, hidden:]
    cut[:, :hidden] = 0
    return cut


def paper():
    """The wallpaper, as patches (196, 36): slopes to the side that grow with the row, slopes down with the
    column, and in all the same chequers, beside which the slopes can be measured whatever the contrast.

    Keys see changes only, and so do not see it.
    """
    place = torch.linspace(-1, 1, SIDE // PATCH)
    row, column = torch.meshgrid(place, place, indexing="ij")
    slope = torch.linspace(-1, 1, PATCH).expand(PATCH, PATCH)
    chequers = (-1.0) ** torch.arange(PATCH).add(torch.arange(PATCH)[:, None])
    made = row[..., None, None] * slope + column[..., None, None] * slope.T + chequers
    return 0.05 * made.reshape(COUNT, -1)


def orders(n, g, shuffled=True):
    """Random orders of the patches (n, 196), or the usual one."""
    if shuffled:
        return torch.rand(n, COUNT, generator=g).argsort(1)
    return torch.arange(COUNT).expand(n, -1)


def renewed(order, every, g):
    """For each decision the orders (n, 196, 4) in which four pictures are seen; a new one (n, 196) comes
    `every` so many decisions, and pictures from before keep theirs, as in the paper's code."""
    four = order[..., None].repeat(1, 1, 4)
    for t in itertools.count():
        if t and every and t % every == 0:
            order = orders(len(order), g)
        four = torch.cat([four[..., 1:], order[..., None]], 2)
        yield four


def learned(config):
    """The waits of the games known by heart, and those of other games: all that there are, once each."""
    waits = np.random.default_rng(0).permutation(30) + 1
    return waits[: config.games], waits[config.games :]


def collect(config, net, number, share, g):
    """Pictures (games, decisions + 3, 84, 84), last moves and the teacher's moves (games, decisions).

    The first round is played by the teacher, the others by the student; some moves are random. The
    student sees as in its lessons."""
    same = net.kind == "by heart"
    games, teacher = Games(config.games), Teacher()
    rng = np.random.default_rng(1000 + number)
    games.reset(rng, learned(config)[0] if same else None)
    last, shots = torch.zeros(config.games, dtype=torch.long), [games.frames]
    lasts, wanted = [], []
    for t in range(config.decisions):
        if t:
            shots.append(games.frames[:, -1:])
        right = torch.from_numpy(teacher(games.memory))
        lasts.append(last)
        wanted.append(right)
        moves = right if number == 0 else act(net, games.frames, last, share, g)
        wild = torch.from_numpy(rng.random(config.games) < (0 if same else config.chance))
        last = torch.where(wild, torch.from_numpy(rng.integers(0, 3, config.games)), moves)
        games.step(last.numpy())
    return torch.cat(shots, 1), torch.stack(lasts, 1), torch.stack(wanted, 1)


@torch.no_grad()
def act(net, frames, last, share, g, order=None):
    """A student's moves (n,); without an order of the patches it has a new one in every step."""
    if order is None:
        order = orders(len(frames), g, net.kind != "ordinary")
    seen = seen_through(frames, order, round(share * COUNT), net.kind)
    return net(seen, F.one_hot(last, 3).float()).argmax(1)


def lessons(config, net, adam, scenes, share, g, device):
    """Updates of a student on what was collected; the mean loss of the last hundred."""
    pictures, lasts, wanted = (torch.cat(part) for part in zip(*scenes, strict=True))
    losses = []
    for _ in range(config.updates):
        game = torch.randint(len(pictures), (config.batch,), generator=g)
        time = torch.randint(config.decisions, (config.batch,), generator=g)
        frames = pictures[game[:, None], time[:, None] + torch.arange(4)]
        order = orders(config.batch, g, net.kind != "ordinary")
        seen = seen_through(frames, order, round(share * COUNT), net.kind)
        last = F.one_hot(lasts[game, time], 3).float()
        loss = F.cross_entropy(net(seen.to(device), last.to(device)), wanted[game, time].to(device))
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    return float(np.mean(losses[-100:]))


def points(config, player, chance=0.02, waits=None):
    """Points won and lost (games,) in games of at most `longest` decisions: player(games, last) -> moves."""
    games, rng = Games(config.games), np.random.default_rng(100)  # other games than were tuned on
    games.reset(rng, waits)
    last = torch.zeros(config.games, dtype=torch.long)
    won, lost = np.zeros((2, config.games))
    for _ in range(config.longest):
        last = player(games, last)
        # A random move now and then, for the teacher, too: no rally repeats for ever.
        wild = torch.from_numpy(rng.random(config.games) < chance)
        last = torch.where(wild, torch.from_numpy(rng.integers(0, 3, config.games)), last)
        reward = games.step(last.numpy())
        won, lost = won + reward.clip(0), lost - reward.clip(max=0)
    return won, lost


def told(won, lost):
    """What is kept of some games."""
    return {"won": won.tolist(), "lost": lost.tolist()}


def tests(config, net, lacked):
    """{what is done to the screen: points}: the order and the missing patches are those of a game.

    lacked: the share that was missing in the lessons."""
    found, g = {}, runtime.generator(runtime.seed_for("test"))
    missing = (
        (0.0, *(share for share in config.missing if share)) if net.kind != "ordinary" else (0.0,)
    )
    known, other = learned(config)
    # (what is done, is it shuffled, share missing, chance of a random move, decisions to a new order, waits)
    cases = [("in order", False, 0.0, 0.02, 0, None)]
    cases += [(f"{m:.0%} missing" if m else "shuffled", True, m, 0.02, 0, None) for m in missing]
    if net.kind == "by heart":
        cases = [("in order", False, 0.0, 0.0, 0, known), (STILL, True, 0.0, 0.0, 0, known),
                 (OTHERS, True, 0.0, 0.0, 0, other), (RANDOM, True, 0.0, 0.02, 0, known)]  # fmt: skip
    elif net.kind != "ordinary" and not lacked:
        cases += [(STILL, True, 0.0, 0.0, 0, known), (RANDOM, True, 0.0, 0.02, 0, known)]
    if net.kind != "ordinary" and not lacked:
        cases += [(ANEW, True, 0.0, 0.0, config.every, known)]
    for name, shuffled, share, chance, every, waits in cases:
        here = config if waits is None else at_home(config, waits)
        flow = renewed(orders(here.games, g, shuffled), every, g)

        def player(games, last, flow=flow, share=share):
            return act(net, games.frames, last, share, g, next(flow))

        found[name] = told(*points(here, player, chance, waits))
        print(
            f"{net.kind}, {name}: {sum(found[name]['won']):.0f} : {sum(found[name]['lost']):.0f}",
            flush=True,
        )
    return found


def at_home(config, waits):
    """The setting of the lessons by heart: games with these waits, as long as they were."""
    return dataclasses.replace(config, games=len(waits), longest=config.decisions)


def run_job(config, setting, folder, device):
    """A student's losses and points; or the teacher's points."""
    job = program.Job(config, setting, folder)
    if job.found is not None:
        return job.found
    kind, share = setting["student"], setting["missing"]
    if kind == "teacher":
        found, known = {}, learned(config)[0]
        for name, here, chance, waits in (
                ("in order", config, 0.02, None), (STILL, at_home(config, known), 0.0, known),
                (RANDOM, at_home(config, known), 0.02, known)):  # fmt: skip
            teacher = Teacher()

            def player(games, last, teacher=teacher):
                return torch.from_numpy(teacher(games.memory))

            found[name.removeprefix("shuffled, ")] = told(*points(here, player, chance, waits))
        return job.finish({**setting, "tests": found})
    torch.manual_seed(runtime.seed_for("student"))
    net = Student(kind)
    saved, meta = job.resume()
    scenes, losses = [], []
    if saved:
        net.load_state_dict({k: torch.from_numpy(v) for k, v in saved.items() if k[:5] != "round"})
        losses = meta["losses"]
        scenes = [tuple(torch.from_numpy(saved[f"round{i}-{part}"]) for part in range(3))
                  for i in range(len(losses))]  # fmt: skip
    for number in range(len(losses), config.rounds):
        g = runtime.generator(runtime.seed_for(number, "round"))
        scenes.append(collect(config, net.cpu(), number, share, g))
        # Adam begins anew with each round's data, its rate lower each time.
        adam = torch.optim.Adam(
            net.to(device).parameters(), config.lr * (1 - number / config.rounds)
        )
        losses.append(lessons(config, net, adam, scenes, share, g, device))
        print(f"{kind}, {share:.0%} missing, round {number + 1}: loss {losses[-1]:.3f}", flush=True)
        job.save({**net.state_dict(), **{f"round{i}-{part}": x for i, scene in enumerate(scenes)
                                         for part, x in enumerate(scene)}}, {"losses": losses})  # fmt: skip
    return job.finish(
        {**setting, "losses": losses, "tests": tests(config, net.cpu().eval(), share)}
    )


def met_before(config):
    """Shares of what one sees (four pictures, without the score) in other games and in disturbed ones of the
    teacher's that occurs, to the pixel, in the games known by heart."""
    known, other = learned(config)

    def seen(waits, chance):
        games, teacher, rng = Games(len(waits)), Teacher(), np.random.default_rng(5)
        games.reset(rng, waits)
        found = []
        for _ in range(config.decisions):
            wild = rng.random(len(waits)) < chance
            games.step(np.where(wild, rng.integers(0, 3, len(waits)), teacher(games.memory)))
            found += [shot[:, SCORE:].numpy().tobytes() for shot in games.frames]
        return found

    pictures = set(seen(known, 0.0))
    return {name: float(np.mean([shot in pictures for shot in seen(waits, chance)]))
            for name, waits, chance in ((OTHERS, other, 0.0), (RANDOM, known, 0.02))}  # fmt: skip


def screens():
    """A screen from a game of the teacher's, and the same on the wallpaper, for a figure: rows of two
    hexadecimal digits a pixel."""
    games, teacher, shown = Games(1), Teacher(), {}
    games.reset(np.random.default_rng(0))
    for _ in range(60):  # the ball is on its way to the right
        games.step(teacher(games.memory))
    for kind in ("patches", "papered"):
        cut = seen_through(games.frames, orders(1, None, False), 0, kind) / CONTRAST
        side = SIDE // PATCH
        picture = cut[0, :, -1].view(side, side, PATCH, PATCH).transpose(1, 2).reshape(SIDE, SIDE)
        levels = (255 * picture).round().clamp(0, 255).int()
        shown[kind] = ["".join(f"{level:02x}" for level in row) for row in levels.tolist()]
    return shown


def ratio(parts, wholes):
    """All parts' share of all wholes, in per cent, with its standard error over the games."""
    whole, n = max(wholes.sum(), 1), len(wholes)
    share = parts.sum() / whole
    error = ((parts - share * wholes) ** 2).sum() * n / max(n - 1, 1)
    return {"mean": 100 * float(share), "spread": 100 * float(error**0.5 / whole), "n": n}


def table(results):
    """A row for each player and each thing done to its screen."""
    rows = []
    for result in results:
        name = result["student"]
        if name in ("patches", "papered"):
            name += f", {result['missing']:.0%} missing in its lessons"
        for what, got in result["tests"].items():
            won, lost = np.array(got["won"]), np.array(got["lost"])
            rows.append({"player": name, "screen": what, "points won (%)": ratio(won, won + lost),
                         "difference": program.mean(won - lost, standard_error=True)})  # fmt: skip
    return rows


def main(argv=None):
    config, args = program.arguments(__doc__, "sensory_neuron", PRESETS, "pong", argv)
    jobs = [
        {"student": kind, "missing": share} for kind, share in (("teacher", 0.0), *config.students)
    ]
    folder = args.runs / config.name
    with runtime.ranks() as (rank, world, device):
        runtime.threads(1)
        for setting in program.deal(jobs, rank, world):
            run_job(config, setting, folder, device)
        if world > 1:
            torch.distributed.barrier()
    if rank:
        return
    results = [run_job(config, s, folder, device) for s in jobs]
    note = (f"Pong of the Arcade Learning Environment. Students of a teacher that reads the machine's memory, "
            f"{config.rounds} rounds of {config.games} games of {config.decisions} decisions and {config.updates:,} "
            f"updates each; tests: {config.games} games of at most {config.longest:,} decisions, 2 % of them random. "
            f"The student 'by heart' learned {config.games} games without random moves, the score hidden; it is "
            f"tested on these, {config.decisions} decisions of each, but where it is said, and so are others where "
            "no move or 2 % of them are said to be random, or there is a new order on the way, every "
            f"{config.every} decisions. Points won: of all that "
            "were played; difference of the points in a game; ± standard error over the games. "
            "The order of the patches and the missing ones are drawn for each game.")  # fmt: skip
    numbers = {"table": table(results), "formats": FORMATS, "runs": results, "screens": screens(),
               "met before": met_before(config)}  # fmt: skip
    program.keep(config, args.out, numbers, note, seeds=[0], gpu=device.type == "cuda")


if __name__ == "__main__":
    program.run(main)
