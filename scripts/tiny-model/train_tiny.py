"""Train the tiny Voxtral on the rows that make_speech.py makes beside it, and measure what was written.

usage: train_tiny.py --shards DIR --data DIR --eval-sets DIR --out DIR --seconds S [options]

SHARDS is where make_speech.py writes (shards are deleted once read), DATA the data of pack_data.py, EVAL-SETS what
`make_speech.py eval` writes. Trains for S seconds on one GPU (for a few steps also on a CPU, as a test) and writes to
OUT: model/ (the model folder), last/ (the same, in between), log.txt, loss.json and device_results.json.

Training rows are changed on the GPU: noise, filters, reverberation, mel warping, masks; half of them are cut behind a
random sentence, as if the file ended there. `Augmenter.features` and `Augmenter.targets` have the two rules of the
end-of-stream token.
"""

import argparse
import json
import math
import random
import threading
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import model as M
from bpe import Tokenizer
from make_speech import FRAMES, META, SAMPLES, SAMPLES_PER_FRAME, SHARD_ROWS, TOKENS
from model import BOS, EOS, LEFT, PAD

ROW_SECONDS = FRAMES * 0.08
MELS_PER_FRAME = 8
N_FRAMES = LEFT + FRAMES
END_SILENCE = 45  # so many silent frames (3.6 s) end any stream that has spoken
SILENCE = (M.MEL_MAX - 8.0 + 4) / 4  # log-mel of silence: under about -72 dBFS all is the same
WARPS = np.linspace(0.86, 1.16, 31)
NO_WARP = 15
# How often each delay is trained.
DELAYS = [6] * 60 + list(range(1, 16)) * 3 + [30] * 6 + list(range(16, 30))
FIRST_MERGE = 1256  # token ids below are special tokens and bytes


class Rows:
    """Training rows in device memory, filled by a thread that reads and deletes shards."""

    def __init__(self, folder, capacity, device):
        self.folder, self.capacity, self.device = folder, capacity, device
        self.audio = torch.empty(capacity, SAMPLES, dtype=torch.int16, device=device)
        self.tokens = torch.empty(capacity, TOKENS, dtype=torch.int16, device=device)
        self.meta = torch.empty(capacity, META, dtype=torch.int16, device=device)
        self.count = 0
        threading.Thread(target=self._fill, daemon=True).start()

    def _fill(self):
        stream = torch.cuda.Stream() if self.device == "cuda" else None
        while True:
            shards = sorted(self.folder.glob("*.bin"), key=lambda path: path.stat().st_mtime)[:32]
            if not shards or self.count + SHARD_ROWS > self.capacity:
                time.sleep(0.2)
                continue
            for shard in shards:
                if self.count + SHARD_ROWS > self.capacity:
                    break
                self._read(shard, stream)
                shard.unlink()

    def _read(self, shard, stream):
        content = torch.from_numpy(np.fromfile(shard, np.int16))
        parts = content.split([SHARD_ROWS * n for n in (SAMPLES, TOKENS, META)])
        rows = slice(self.count, self.count + SHARD_ROWS)
        with torch.cuda.stream(stream):  # without a stream this does nothing
            for target, part in zip((self.audio, self.tokens, self.meta), parts):
                target[rows].copy_(part.view(SHARD_ROWS, -1))
        if stream:
            stream.synchronize()
        self.count += SHARD_ROWS


def run_length(on, index):
    """Frames since the last True, [B, n]."""
    return index - torch.where(on, index, -1).cummax(1).values


def add_noise(power, noise, live, r1, r2):
    """|X + N|^2 for complex Gaussian N of power `noise`, where `live`; r1, r2 are uniformly random."""
    n = noise[:, :, None] * live * -torch.log(r1.clamp_min(1e-7))
    return (power + n + 2 * (power * n).sqrt() * (r2 * 6.2831853).cos()).clamp_min(0)


class Augmenter:
    """Makes training batches of rows: changed features, and targets that fit them."""

    def __init__(self, device):
        self.device = device
        self.filters = M.mel_filters().T.to(device)
        self.warped_filters = torch.stack([M.mel_filters(warp).T for warp in WARPS]).to(device)
        tilt = torch.arange(201).clamp_min(2) / 10
        self.noise_shapes = torch.stack([torch.ones(201), 1 / tilt, 1 / tilt**0.5]).to(device)
        self.delays = torch.tensor(DELAYS, device=device)
        self.add_noise = add_noise

    def uniform(self, n, low=0.0, high=1.0):
        return torch.rand(n, device=self.device) * (high - low) + low

    def smooth(self, n_rows, n_points, amplitude):
        """Random smooth curves over the 201 bins."""
        points = torch.randn(n_rows, 1, n_points, device=self.device)
        return F.interpolate(points, 201, mode="linear", align_corners=True)[:, 0] * amplitude

    def features(self, x, strength, delay, meta):
        """x [B, samples] float -> log-mel [B, 128, frames] (changed), which frames are audible, and the cut:
        (which rows are cut and noisy, their end in frames, the end of their tokens).

        Half of the rows are cut behind a random sentence: speech is silenced from there on. With noise the file ends a
        bit later, and the exact zeros of the padding follow.
        """
        n_rows = x.shape[0]
        n_mels = FRAMES * MELS_PER_FRAME
        uniform, device = self.uniform, self.device
        rms = x.pow(2).mean(1).sqrt() + 1e-5
        gain = 10 ** (uniform(n_rows, -12, 8) / 20)
        gain = torch.minimum(gain, 0.99 / (x.abs().amax(1) + 1e-6))

        # Stationary coloured noise. What is too faint to be seen is left out; rows with pauses over 2.7 s always get
        # audible noise; in blank rows there is nothing else.
        long_pause = meta[:, 0] > 270
        blank = uniform(n_rows) < 0.02 * strength
        level = (rms * gain) * 10 ** (-uniform(n_rows, 5, 40) / 20)
        level = torch.where(long_pause | blank, level.clamp_min(1e-3), level)
        shape = self.noise_shapes[torch.randint(0, 3, (n_rows,), device=device)]
        shape = shape * 10 ** (self.smooth(n_rows, 9, 3) / 20)
        shape = shape / shape.pow(2).mean(1, keepdim=True).sqrt()
        noise = (level[:, None] * shape).pow(2) * 150
        seen = ((noise @ self.filters.T).clamp_min(1e-12).log10() > -6.3).float().mean(1) > 0.25
        noisy = ((uniform(n_rows) < 0.6 * strength) | long_pause | blank) & seen
        noise = noise * noisy[:, None]

        # The cut, in 10 ms: behind sentence k, one of those that leave room for what must follow.
        sentence_ends, token_ends = meta[:, 1::2].long(), meta[:, 2::2].long()
        tail = torch.where(
            uniform(n_rows) < 0.35,
            uniform(n_rows, 0, 15),
            torch.where(uniform(n_rows) < 0.7, uniform(n_rows, 15, 100), uniform(n_rows, 100, 300)),
        ).long()
        need = torch.where(noisy, tail + 8 * (delay + 12), torch.full_like(tail, 8 * (END_SILENCE + 2)))
        n = ((sentence_ends >= 0) & (sentence_ends + need[:, None] <= n_mels)).sum(1)
        anywhere = uniform(n_rows) < 0.4
        k = torch.where(anywhere, uniform(n_rows) * n, n - 1 - (uniform(n_rows) * n.clamp_max(3)).floor())
        k = k.long().clamp_min(0)[:, None]
        cut = (uniform(n_rows) < 0.5) & (n > 0)
        speech_end, token_end = sentence_ends.gather(1, k)[:, 0], token_ends.gather(1, k)[:, 0]
        speech_end, token_end = torch.where(blank, 0, speech_end), torch.where(blank, 0, token_end)
        cut = cut | (blank & noisy)
        tail = torch.where(blank, (uniform(n_rows) * (n_mels - 8 * (delay + 14))).long(), tail)
        end = torch.where(cut & noisy, speech_end + tail, n_mels)
        token_end = torch.where(cut, token_end, TOKENS)
        last_sample = torch.where(cut, speech_end * 160 + 80, x.shape[1])
        x = x * (torch.arange(x.shape[1], device=device)[None] < last_sample[:, None])

        power = M.stft(F.pad(x * gain[:, None], (LEFT * SAMPLES_PER_FRAME, 0)))
        equalizer = 10 ** (self.smooth(n_rows, 7, 4 * strength) / 10)
        power = (power.real.square() + power.imag.square()) * equalizer[:, :, None]
        # Late reverberation: a decaying tail in the power domain.
        steps = torch.arange(1, 33, device=device).float()
        decay = torch.exp(-steps * random.uniform(0.12, 0.5)) * random.uniform(0.02, 0.25)
        n_reverberant = int(n_rows * 0.3 * strength)
        if n_reverberant:
            padded = F.pad(power[:n_reverberant].reshape(-1, 1, power.shape[-1]), (32, 0))
            tails = F.conv1d(padded, decay.flip(0).view(1, 1, -1))[..., :-1]
            power[:n_reverberant] += tails.view(n_reverberant, 201, -1)

        # Noise runs from the first real frame to the file's end (the left padding stays silent); sometimes it is gated
        # off in short pauses.
        time_10ms = torch.arange(power.shape[-1], device=device)
        within = time_10ms[None] <= LEFT * MELS_PER_FRAME + end[:, None]
        live = (time_10ms >= LEFT * MELS_PER_FRAME) & within
        frames = torch.arange(FRAMES, device=device)[None]
        active = x.view(n_rows, FRAMES, SAMPLES_PER_FRAME).abs().amax(2) > 1e-3
        gap = run_length(active, frames) + run_length(active.flip(1), frames).flip(1) - 1
        gates = ((uniform(n_rows) < 0.25) & noisy & ~long_pause)[:, None]
        gated = ~active & (gap <= (delay + 4)[:, None]) & gates
        live[:, LEFT * MELS_PER_FRAME :] &= ~gated.repeat_interleave(MELS_PER_FRAME, 1)
        r1, r2 = torch.rand_like(power), torch.rand_like(power)
        power = self.add_noise(power, noise, live[:, None].float(), r1, r2)
        power = power * within[:, None]

        warped = torch.rand(n_rows, device=device) < 0.7 * strength
        warp = torch.where(warped, torch.randint(0, len(WARPS), (n_rows,), device=device), NO_WARP)
        mel = M.log_mel(power, self.warped_filters[warp])
        audible = (mel.amax(1) > SILENCE + 0.01).view(n_rows, -1, MELS_PER_FRAME).any(2)
        if strength > 0:  # SpecAugment
            bands = torch.arange(128, device=device)
            for _ in range(2):
                low, width = uniform(n_rows, 0, 128), uniform(n_rows, 0, 10)
                masked = (bands >= low[:, None]) & (bands < (low + width)[:, None])
                mel = mel.masked_fill(masked[:, :, None], -0.3)
            high = (LEFT * MELS_PER_FRAME + end - 10).clamp_min(310)
            for _ in range(3):
                first, width = uniform(n_rows) * (high - 300) + 300, uniform(n_rows, 0, 9)
                masked = (time_10ms >= first[:, None]) & (time_10ms < (first + width)[:, None])
                mel = mel.masked_fill(masked[:, None, :], -0.3)
        return mel, audible, (cut & noisy, (end + 7) // 8, token_end)

    def targets(self, tokens, delay, audible, cut):
        """tokens [B, TOKENS] at a delay of 0 -> previous tokens and targets [B, N_FRAMES]; targets are -100 inside the
        prompt and after EOS.

        EOS comes (1) in a cut row with audible noise: 8 frames after the file's end, or 2 after the last text token if
        that is later (at most 10, where the offline padding stops); (2) in any row: once END_SILENCE silent frames were
        seen after some text.
        """
        n_rows, device = tokens.shape[0], self.device
        j = torch.arange(N_FRAMES, device=device)[None]
        ends, end_frame, token_end = cut
        position = j - LEFT - delay[:, None]
        target = torch.where(position >= 0, tokens.gather(1, position.clamp(0, TOKENS - 1)), PAD)
        target = torch.where(position < token_end[:, None], target, PAD)
        previous = torch.cat([torch.full((n_rows, 1), BOS, device=device), target[:, :-1]], 1)
        silent = (run_length(audible, j) >= END_SILENCE) & (target == PAD) & (previous == PAD)
        silent &= (target >= 1000).cumsum(1) > 0
        eos_by_silence = torch.where(silent.any(1), silent.float().argmax(1), N_FRAMES)
        eos = torch.maximum(end_frame + 8, token_end + 2)
        eos_by_cut = torch.where(eos <= end_frame + 10, LEFT + delay + eos, N_FRAMES)
        eos = torch.where(ends, eos_by_cut, eos_by_silence)[:, None]
        target = torch.where(j == eos, EOS, target)
        off = (position < 0) | (j > eos) | (ends[:, None] & (position > (end_frame + 10)[:, None]))
        return previous, target.masked_fill(off, -100)

    @torch.no_grad()
    def batch(self, rows, n, strength):
        """n random rows as (mel, previous tokens, targets, delays)."""
        i = torch.randint(0, rows.count, (n,), device=self.device)
        audio, tokens, meta = rows.audio[i].float() / 32768, rows.tokens[i].long(), rows.meta[i]
        delay = self.delays[torch.randint(0, len(self.delays), (n,), device=self.device)]
        mel, audible, cut = self.features(audio, strength, delay, meta)
        previous, target = self.targets(tokens, delay, audible, cut)
        # A little noise on the text that is fed back, against blind trust in it.
        r = torch.rand(previous.shape, device=self.device)
        wrong = torch.randint(FIRST_MERGE, M.CONFIG["vocab"], previous.shape, device=self.device)
        previous = torch.where((previous >= 1000) & (r < 0.05 * strength), wrong, previous)
        return mel, previous, target, delay


class Muon:
    """Momentum with orthogonalized updates for matrices, batched by shape."""

    def __init__(self, parameters, weight_decay=0.05, momentum=0.95):
        self.weight_decay, self.momentum = weight_decay, momentum
        self.groups = {}
        for p in parameters:
            self.groups.setdefault((p.shape[0], p[0].numel()), []).append(p)
        self.buffers = {
            shape: torch.zeros(len(group), *shape, device=group[0].device) for shape, group in self.groups.items()
        }

    @torch.no_grad()
    def step(self, lr):
        for shape, group in self.groups.items():
            gradient = torch.stack([p.grad.view(shape) for p in group])
            buffer = self.buffers[shape]
            buffer.lerp_(gradient, 1 - self.momentum)
            x = gradient.lerp(buffer, self.momentum)
            x = x.to(torch.bfloat16 if x.is_cuda else torch.float32)
            tall = shape[0] > shape[1]
            if tall:
                x = x.mT
            x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
            for _ in range(5):  # Newton-Schulz towards the nearest orthogonal matrix
                y = x @ x.mT
                x = 3.4445 * x + (-4.7750 * y + 2.0315 * y @ y) @ x
            if tall:
                x = x.mT
            x = x.float() * (0.2 * max(shape) ** 0.5 * lr)
            torch._foreach_mul_(group, 1 - lr * self.weight_decay)
            torch._foreach_sub_(group, [update.view_as(p) for p, update in zip(group, x)])


def split_parameters(model):
    """Those for Muon, those for AdamW with weight decay, those without."""
    muon, decayed, plain = [], [], []
    for name, p in model.named_parameters():
        if p.dim() < 2:
            plain.append(p)
        elif "tok_emb" in name or "t_cond" in name:
            decayed.append(p)
        else:
            muon.append(p)
    return muon, decayed, plain


def pick_attention(log):
    """Take the fused attention kernel if it is there, right and faster."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(8, 1536, 4, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    results = {}
    try:
        for M.attention_form in ("block", "flash"):
            for i in range(6):
                if i == 3:
                    torch.cuda.synchronize()
                    start = time.time()
                q.grad = k.grad = v.grad = None
                out = M.attend(q, k, v, 256)
                out.float().pow(2).sum().backward()
            torch.cuda.synchronize()
            results[M.attention_form] = (out.detach().float(), k.grad.float(), time.time() - start)
    except (RuntimeError, TypeError, AttributeError) as error:
        log(f"fused attention cannot be used: {error}")
        M.attention_form = "block"
        return
    block, flash = results["block"], results["flash"]
    error = max(((block[i] - flash[i]).norm() / block[i].norm()).item() for i in (0, 1))
    M.attention_form = "flash" if error < 2e-2 and flash[2] < block[2] else "block"
    log(f"attention: {M.attention_form} (difference {error:.1e}, {flash[2] / block[2]:.2f} of the time of blocks)")


class Evaluator:
    """Word error rates on the evaluation sets, by the streaming decode."""

    def __init__(self, folder, tokenizer, log):
        self.folder, self.tokenizer, self.log = folder, tokenizer, log
        self.sets = None  # [(name, audio, texts)]

    def ready(self):
        if self.sets is None and (self.folder / "done").exists():
            self.sets = []
            for path in sorted(self.folder.glob("*.npz")):
                content = np.load(path)
                self.sets.append((path.stem, torch.from_numpy(content["a"]), json.loads(str(content["s"]))))
        return self.sets is not None

    @torch.no_grad()
    def run(self, model, n, delay=6, show=0):
        """{set: per cent} for the first n rows of each; logs the first `show` decodes."""
        device = model.embeddings.device
        form, M.attention_form = M.attention_form, "block"
        model.eval()
        rows = torch.cat([audio[:n] for _, audio, _ in self.sets])
        last = int((rows.abs() > 60).any(0).nonzero().max()) + 8000  # the silence behind is cut off
        decoded = []
        for i in range(0, len(rows), 128):
            audio = rows[i : i + 128, :last].to(device).float() / 32768
            decoded += M.transcribe(model, audio, delay, self.tokenizer.decode)[0]
        result = {}
        for name, audio, texts in self.sets:
            k = len(audio[:n])
            mine, decoded = decoded[:k], decoded[k:]
            result[name] = round(100 * M.wer(mine, texts[:k]), 2)
            for text, reference in list(zip(mine, texts))[:show]:
                self.log(f"    {name} | reference: {reference} | decoded: {text}")
        model.train()
        M.attention_form = form
        return result


def loss_and_accuracy(model, device, mel, previous, target, delay):
    """Cross entropy with half weight on pads and EOS; the share of right text tokens."""
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        logits = model(mel, previous, delay)
    logits, target = logits.float().flatten(0, 1), target.flatten()
    loss = F.cross_entropy(logits, target, ignore_index=-100, reduction="none")
    weight = (target != -100).float()
    weight = torch.where((target == PAD) | (target == EOS), 0.5 * weight, weight)
    right = (logits.argmax(-1) == target) & (target >= 1000)
    return (loss * weight).sum() / weight.sum(), right.sum() / (target >= 1000).sum().clamp_min(1)


def train(args, model, rows, augmenter, evaluator, log):
    """Returns (steps, seconds, history); history is [[step, seconds, loss, accuracy, learning rate, rows]]."""
    gpu = augmenter.device == "cuda"
    muon_parameters, decayed, plain = split_parameters(model)
    muon = Muon(muon_parameters)
    groups = [{"params": decayed, "weight_decay": 0.02}, {"params": plain, "weight_decay": 0}]
    adam = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98), eps=1e-9, fused=gpu)

    def step_function(*batch):
        return loss_and_accuracy(model, augmenter.device, *batch)

    if gpu and args.compile:
        start = time.time()
        augmenter.add_noise = torch.compile(add_noise, dynamic=False)
        step_function = torch.compile(step_function, dynamic=False)
        step_function(*augmenter.batch(rows, args.batch, 1.0))[0].backward()
        torch.cuda.synchronize()
        model.zero_grad(set_to_none=False)
        log(f"compiled in {time.time() - start:.0f} s; {rows.count} rows now")

    every = 50 if gpu else 10  # steps between entries of the history
    start = last_time = last_evaluation = time.time()
    step, history, recent = 0, [], []
    while True:
        now = time.time()
        if now >= start + args.seconds or step >= args.steps:
            break
        progress = min(1, max((now - start) / args.seconds, step / args.steps))
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        lr = args.lr * min(1, (step + 1) / args.warmup) * (cosine * 0.99 + 0.01)
        strength = min(1, step / 600)
        loss, accuracy = step_function(*augmenter.batch(rows, args.batch, strength))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decayed + plain, 1.0)
        for group in adam.param_groups:
            group["lr"] = lr * 0.7
        muon.step(lr)
        adam.step()
        model.zero_grad(set_to_none=False)
        recent.append(torch.stack([loss.detach(), accuracy.detach().float()]))
        step += 1
        if step % every:
            continue

        mean_loss, mean_accuracy = torch.stack(recent).mean(0).tolist()
        recent = []
        now = time.time()
        history.append(
            [step, round(now - start, 1), round(mean_loss, 4), round(mean_accuracy, 4), round(lr, 6), rows.count]
        )
        if step % (4 * every) == 0 or step < 400:
            speed = every * args.batch * ROW_SECONDS / (now - last_time)
            log(
                f"step {step}: {now - start:.0f} s, loss {mean_loss:.4f}, accuracy {mean_accuracy:.4f}, lr {lr:.5f},"
                f" {rows.count} rows ({rows.count * ROW_SECONDS / 3600:.1f} h), {speed:.0f} s of audio a second"
            )
        last_time = now
        if now - last_evaluation > args.eval_every and evaluator.ready():
            rates = evaluator.run(model, 24)
            log(f"  word errors in % at delay 6: {rates}, mean {np.mean(list(rates.values())):.2f}")
            M.save(model, args.out / "last", args.data / "tekken.json")
            last_evaluation = last_time = time.time()
    return step, time.time() - start, history


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--shards", "--data", "--eval-sets", "--out"):
        parser.add_argument(name, type=Path, required=True, metavar="DIR")
    parser.add_argument("--seconds", type=float, required=True, help="how long to train")
    parser.add_argument("--steps", type=int, default=10**9, help="train for so many steps at most")
    parser.add_argument("--batch", type=int, default=32, help="rows a step [32]")
    parser.add_argument("--lr", type=float, default=3e-3, help="largest learning rate [0.003]")
    parser.add_argument("--warmup", type=int, default=150, help="steps until it is reached [150]")
    parser.add_argument("--min-rows", type=int, default=96, help="rows to wait for before the first step [96]")
    parser.add_argument("--max-rows", type=int, default=60000, help="rows to keep in memory, 0.9 MB each [60000]")
    parser.add_argument("--eval-every", type=float, default=100, help="seconds between evaluations [100]")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="do not use torch.compile")
    return parser.parse_args()


def main():
    args = parse_arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    log_file = (args.out / "log.txt").open("a")

    def log(text):
        print(text, flush=True)
        print(text, file=log_file, flush=True)

    started = time.time()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(1)
    random.seed(1)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    if device == "cuda":
        pick_attention(log)
    rows = Rows(args.shards, args.max_rows if device == "cuda" else min(args.max_rows, 600), device)
    augmenter = Augmenter(device)
    model = M.Tiny().to(device)
    log(f"{sum(p.numel() for p in model.parameters())} parameters")
    evaluator = Evaluator(args.eval_sets, Tokenizer(args.data / "tekken.json"), log)
    while rows.count < args.min_rows:
        time.sleep(0.2)
    log(f"{rows.count} rows after {time.time() - started:.0f} s")

    steps, seconds, history = train(args, model, rows, augmenter, evaluator, log)
    M.save(model, args.out / "model", args.data / "tekken.json")
    (args.out / "loss.json").write_text(json.dumps(history))
    results = {
        "steps": steps,
        "seconds": round(seconds, 1),
        "rows": rows.count,
        "hours": round(rows.count * ROW_SECONDS / 3600, 1),
        "audio_seen_hours": round(steps * args.batch * ROW_SECONDS / 3600, 1),
    }
    model.load_state_dict(M.load(args.out / "model", device).state_dict())  # measure what was written, in BF16
    while not evaluator.ready():
        time.sleep(1)
    for delay in (6, 1, 3, 12, 30, 2, 4, 8, 20):
        rates = evaluator.run(model, 64 if delay == 6 else 32, delay, 2 if delay == 6 else 0)
        results[f"wer_d{delay}"] = rates
        log(f"final word errors in % at delay {delay}: {rates}")
    (args.out / "device_results.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
