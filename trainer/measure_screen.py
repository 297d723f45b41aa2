"""What a person reads of an evaluation: a table of samplings, and speed at a quality in one sentence."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.quality import MAUVE_FEW_TEXTS

_WIDTH = 80
_OTHER_SIZE = 2.0  # times as many parameters: two models then no longer are of comparable size
_ONE_ENTROPY = 0.1  # nats, in which perplexity climbs 1.7 times (measured, tests/baselines/equal_entropy.py)
_OTHER_LENGTH = 1.1  # times as many tokens of the judge in a text (guess)


def screen(result: dict[str, Any], out: Path) -> str:
    """The panel, a line for each sampling, where the rest is, and the headline."""
    panel = [f"{name.replace('_', ' ')} {scores['accuracy']:.1%}" for name, scores in result["panel"].items()]
    batches = batches_of(result)
    lines = ["held-out tokens that come back:", *_folded("  ".join(panel), indent="  "),
             *_folded(f"perplexity by {result['judge']['name']}, of {result['reference']['num_texts']} texts "
                      f"each; tokens/s at batch {' and '.join(map(str, batches))}:"),
             *_table(result, "generative_perplexity", "held-out text", batches)]
    told = result.get("completions")
    if told:
        lines += [*_folded(f"completions of {told['reference']['num_texts']} held-out texts after "
                           f"{told['prompt_tokens']} tokens, perplexity given those:"),
                  *_table(told, "perplexity_given_prompt", "the original")]
    lines += _folded(f"wrote evaluation.json, evaluation.png and samples.json to {out}")
    return "\n".join(lines + _folded(headline(result)))


def batches_of(result: dict[str, Any]) -> list[int]:
    """Sizes of batches whose speed is known: 1, and the run's."""
    return sorted({1, result["frontier"][0]["batch"]})


def best_of(result: dict[str, Any]) -> dict[str, Any] | None:
    """The sampling of ours with the lowest perplexity at the entropy of held-out text, or next to it.

    Of all of them that of the lowest perplexity would be the one that repeats itself most. None: no text was
    scored.
    """
    real = score(result["reference"], "entropy") or 0.0
    scored = [(abs((score(point, "entropy") or 0.0) - real), perplexity, point)
              for point in result["frontier"]
              if (perplexity := score(point, "generative_perplexity")) is not None]
    if not scored:
        return None
    # Within one entropy the perplexity decides.
    return min(scored, key=lambda found: (max(found[0], _ONE_ENTROPY), found[1]))[2]


def headline(result: dict[str, Any]) -> str:
    """Speed at a quality: our best sampling, and the autoregressive model where there is one."""
    best, batches = best_of(result), batches_of(result)
    if best is None:
        ours = "no text of this model could be scored"
    else:
        at = best["setting"]
        temperature = "" if at["temperature"] == 1 else f", temperature {at['temperature']:g}"
        ours = f"{_at_quality(best, batches)} ({at['steps']} steps{temperature})"
    return f"{ours}{_beside(result, batches)}{_doubt(result, best)}"


def score(scores: dict[str, Any], metric: str) -> float | None:
    """A metric by whichever judge."""
    found: float | None = next((value for key, value in scores.items()
                                if key == metric or key.startswith(f"{metric}_by_")), None)
    return found


def _doubt(result: dict[str, Any], best: dict[str, Any] | None) -> str:
    """Said where a judge finds no text as unlikely as real text: it has learned too little."""
    real, own = (score(scores or {}, "generative_perplexity") for scores in (result["reference"], best))
    return "" if real is None or own is None or real <= own else (
        f"; held-out text has perplexity {real:,.1f}: this judge says little")


def _beside(result: dict[str, Any], batches: Sequence[int]) -> str:
    other = result.get("autoregressive")
    if other is None:
        return ""
    if other["random_weights"]:
        return (f"; autoregressive, {other['parameters'] / 1e6:,.1f} M parameters beside "
                f"{result['parameters'] / 1e6:,.1f} M: {_speeds(other, batches)}, with random weights, whose "
                "text means nothing")
    return f"; autoregressive: {_at_quality(other, batches)}; {_sizes(result)}{_unlike(result)}"


def _at_quality(point: dict[str, Any], batches: Sequence[int]) -> str:
    perplexity, entropy = score(point, "generative_perplexity"), score(point, "entropy")
    quality = "text that could not be scored" if perplexity is None or entropy is None else (
        f"perplexity {perplexity:,.1f}, entropy {entropy:.2f}")
    return f"{_speeds(point, batches)} at {quality}"


def _speeds(point: dict[str, Any], batches: Sequence[int]) -> str:
    first, *more = (f"{point[f'tokens_per_s_batch_{batch}']:,.0f}" for batch in batches)
    return f"{first} tokens/s" + "".join(f" ({speed} at batch {batch})"
                                         for speed, batch in zip(more, batches[1:], strict=True))


def _sizes(result: dict[str, Any]) -> str:
    other, own = result["autoregressive"]["parameters"], result["parameters"]
    ratio = max(other, own) / min(other, own)
    return (f"it has {other / 1e6:,.1f} M parameters, this model {own / 1e6:,.1f} M"
            + (f", which is not comparable: {ratio:.1f} times" if ratio > _OTHER_SIZE else ""))


def _unlike(result: dict[str, Any]) -> str:
    """Said where perplexities, or tokens/s, of the two compare little."""
    ours, other = best_of(result), result["autoregressive"]
    if ours is None:
        return ""
    words, entropies = "", [score(point, "entropy") or 0.0 for point in (ours, other)]
    if abs(entropies[0] - entropies[1]) > _ONE_ENTROPY:
        words += "; at unlike entropies perplexities compare little"
    lengths = ours["tokens_per_text"], other["tokens_per_text"]
    if min(lengths) > 0 and max(lengths) > _OTHER_LENGTH * min(lengths):
        words += (f"; the judge reads {lengths[1]:.0f} tokens in a text of it, {lengths[0]:.0f} in one of "
                  "this model")
    return words


def _folded(text: str, indent: str = "") -> list[str]:
    # A number stays with its name: blanks within an item do not break.
    kept = "  ".join(item.replace(" ", "\N{NO-BREAK SPACE}") for item in text.split("  ")) if indent else text
    lines = textwrap.wrap(kept, _WIDTH, initial_indent=indent, subsequent_indent=indent or "  ",
                          break_long_words=False, break_on_hyphens=False)
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]


def _table(scored: dict[str, Any], perplexity: str, reference: str, batches: Sequence[int] = ()) -> list[str]:
    """A line for each sampling of a frontier, one for the reference, one for what stands beside.

    Args:
        scored: Samplings and reference.
        perplexity: Its metric.
        reference: What the reference is called.
        batches: Of the speeds shown. Completions are not timed.
    """
    heads = "".join(f"  {f'batch {batch}':>9}" for batch in batches)
    lines = [f"  {'steps':>5} {'temp.':>6}  {'perplexity':>10}  {'entropy':>7}  {'dist. 2':>7}  "
             f"{'ends':>4}  {'MAUVE':>5}{heads}"]
    for point in scored["frontier"]:
        lines.append(f"  {point['setting']['steps']:>5} {point['setting']['temperature']:>6g}  "
                     f"{_scores(point, perplexity, 10)}{_speed_cells(point, batches)}")
    other = scored.get("autoregressive")
    if other and not other["random_weights"]:
        cells = f"{_scores(other, perplexity, 8)}{_speed_cells(other, batches)}"
        lines.append(f"  {'autoregressive':>14}  {cells}")
    lines.append(f"  {reference:>14}  {_scores(scored['reference'], perplexity, 8)}".rstrip())
    num = scored["reference"]["num_texts"]
    says_little = num < MAUVE_FEW_TEXTS and any(score(point, "mauve") for point in scored["frontier"])
    return lines + ([f"  MAUVE of {num} texts: says little"] if says_little else [])


def _speed_cells(point: dict[str, Any], batches: Sequence[int]) -> str:
    return "".join(f"  {point[f'tokens_per_s_batch_{batch}']:>9,.0f}" for batch in batches)


def _scores(scores: dict[str, Any], perplexity: str, width: int) -> str:
    """Cells that samples and reference both have, and MAUVE; `ends` are rows that hold an end of text."""
    return (f"{_cell(scores, perplexity, width, 1)}  {_cell(scores, 'entropy', 7, 2)}  "
            f"{_cell(scores, 'distinct_2', 7, 3)}  {100 * scores['rows_with_end']:>3.0f}%  "
            f"{_cell(scores, 'mauve', 5, 2)}")


def _cell(scores: dict[str, Any], metric: str, width: int, digits: int) -> str:
    value = score(scores, metric)
    return f"{'-':>{width}}" if value is None else f"{value:>{width},.{digits}f}"
