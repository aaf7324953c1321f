"""Build the sentence lists for training and testing from public-domain and freely licensed texts, templates and random
words.

usage: make_text.py TEXT_DIR HIBARI_DIR OUT_DIR

TEXT_DIR holds unpacked Debian packages and bible.txt (see prepare.sh), HIBARI_DIR the hibari Python package, whose
lexicon limits the vocabulary. Writes OUT_DIR/train.json and test.json, lists of [source, sentence]; 0.8 % of the
sentences, chosen by a hash of their text, are for testing. The same input gives the same output.
"""

import collections
import gzip
import hashlib
import json
import random
import re
import sys
import zlib
from pathlib import Path

import templates

MAX_VOCABULARY = 13000
R = random.Random(1)

# What each source counts in the choice of the vocabulary.
SHARE = {"wn_def": 0.25, "wn_ex": 0.3, "austen": 0.22, "jargon": 0.15, "devil": 0.04, "bible": 0.04}
TITLES = {"Mr": "Mister", "Mrs": "Missus", "Dr": "Doctor", "St": "Saint", "Ms": "Miss"}
CONTRACTIONS = set(
    """
    i'm i'd i'll i've don't didn't can't couldn't won't wouldn't isn't aren't wasn't weren't it's that's there's he's
    she's you're we're they're you've we've they've you'll we'll they'll he'll she'll doesn't hasn't haven't hadn't
    let's what's who's shouldn't o'clock he'd she'd you'd we'd they'd
    """.split()
)
# Words that a test fixture need not know.
EXCLUDED = set(
    """
    ass bastard bitch cock crap cum damn dick erotic fuck fucking naked nazi nazis nipple nude penis rape retarded
    sex vagina
    """.split()
)
AMERICAN = {
    british: american
    for british, american in (
        pair.strip().split("=")
        for pair in """
        colour=color; honour=honor; favour=favor; labour=labor; neighbour=neighbor; centre=center; theatre=theater;
        grey=gray; behaviour=behavior; honourable=honorable; favourite=favorite; humour=humor; towards=toward;
        defence=defense; realise=realize; recognise=recognize; organise=organize; organisation=organization;
        realised=realized; organised=organized; programme=program; travelled=traveled; harbour=harbor; colours=colors;
        parlour=parlor; endeavour=endeavor; honoured=honored; judgement=judgment; to-day=today; to-morrow=tomorrow;
        every body=everybody; every thing=everything; any body=anybody; any thing=anything; shew=show; chuse=choose;
        surprise=surprise; licence=license; offence=offense; analyse=analyze; cheque=check; metre=meter; litre=liter
        """.split(";")
    )
}


def normalize(text):
    """Plain quotes, and only commas, full stops, question and exclamation marks as punctuation."""
    text = text.replace("\u2019", "'").replace("\u2018", "'").replace("\u201c", '"').replace("\u201d", '"')
    text = text.replace("--", ", ").replace("\u2014", ", ")
    text = re.sub(r'["`_*\[\](){}<>|]', "", text)
    text = text.replace(";", ",").replace(":", ",")
    text = re.sub(r"(?<![A-Za-z])'|'(?![A-Za-z])", "", text)
    text = re.sub(r"\s+", " ", text).strip(" ,-")
    text = re.sub(r"\s+([,.?!])", r"\1", text)
    return re.sub(r"([,.?!])[,.?!]+", r"\1", text)


def accept(sentence, allowed):
    """The sentence in American spelling with a capital and a full stop; None if it is too short or too long (2 to 28
    words, 170 characters), has words that are not allowed or anything but words and simple punctuation."""
    words = sentence.split()
    if not 2 <= len(words) <= 28 or len(sentence) > 170:
        return None
    out = []
    for i, word in enumerate(words):
        match = re.fullmatch(r"([A-Za-z][A-Za-z']*)([,.?!]?)", word)
        if not match:
            return None
        core = match.group(1)
        lower = core.lower()
        if lower in AMERICAN:
            lower = AMERICAN[lower]
            core = lower.capitalize() if core[0].isupper() else lower
        if not (lower.endswith("'s") and lower[:-2] in allowed) and lower not in allowed:
            return None
        if core.isupper() and len(core) > 1:
            return None
        if i == 0:
            core = core[0].upper() + core[1:]
        if core == "i" or core.startswith("i'"):
            core = "I" + core[1:]
        out.append(core + match.group(2))
    result = " ".join(out).removesuffix(",")
    if result[-1] not in ".?!":
        result += "."
    return None if re.search(r"[.?!] ", result) else result


def sentences(text):
    """The sentences of a text whose paragraphs are separated by empty lines."""
    for paragraph in re.split(r"\n\s*\n", text):
        flat = re.sub(r"\b(Mr|Mrs|Dr|St|Ms)\.", lambda m: TITLES[m.group(1)], " ".join(paragraph.split()))
        yield from re.split(r'(?<=[.?!])["\')]*\s+', flat)


def pieces(sentence):
    """The normalized sentence; if it has more than 24 words, cut at commas into pieces of 4 to some 24 words."""
    sentence = normalize(sentence)
    if len(sentence.split()) <= 24:
        yield sentence
        return
    piece = ""
    for part in re.split(r"(?<=,) ", sentence):
        if len((piece + " " + part).split()) > 22 and piece:
            yield piece
            piece = part
        else:
            piece = (piece + " " + part).strip()
    if len(piece.split()) >= 4:
        yield piece


def read_wordnet(folder):
    """WordNet 3.0: definitions and example sentences."""
    examples, definitions = [], []
    for part in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"wordnet-base/usr/share/wordnet/data.{part}").open(encoding="latin1"):
            if "|" not in line:
                continue
            gloss = line.split("|", 1)[1]
            examples += [normalize(e) for e in re.findall(r'"([^"]+)"', gloss) if len(e.split()) >= 3]
            definition = re.sub(r"\([^)]*\)", "", re.sub(r'"[^"]*"', "", gloss).split(";")[0])
            if len(definition.split()) >= 5:
                definitions.append(normalize(definition))
    return definitions, examples


def read_austen(folder):
    """Jane Austen's six novels, from an R data file: a row of zlib streams behind lengths of 4 bytes."""
    data = (folder / "r-cran-janeaustenr/usr/lib/R/site-library/janeaustenr/data/Rdata.rdb").read_bytes()
    start = 0
    while start < len(data):
        stream = zlib.decompressobj()
        record = stream.decompress(data[start + 4 :])
        start = len(data) - len(stream.unused_data)
        lines = re.finditer(rb"\x00\x04\x00\t\x00\x00\x00.([^\x00]*)", record, re.DOTALL)
        yield from sentences("\n".join(line.group(1).decode("latin1") for line in lines))


def read_jargon(folder):
    """The Jargon File."""
    with gzip.open(folder / "jargon-text/usr/share/doc/jargon-text/jargon.txt.gz", "rt", errors="replace") as file:
        yield from sentences(file.read())


def read_devil(folder):
    """Ambrose Bierce, The Devil's Dictionary: the entries' prose (verse is indented)."""
    with gzip.open(folder / "dict-devil/usr/share/dictd/devil.dict.dz", "rt", errors="replace") as file:
        text = file.read().split("A.B.", 1)[-1]
    text = re.sub(r"(?m)^\s{4,}\S.*$", "", text)
    yield from sentences(re.sub(r"(?m)^[A-Z' -]{2,}, [a-z.]+\s+", "", text))


def read_bible(folder):
    """The King James Bible: one verse a line, cut into sentences."""
    for line in (folder / "bible.txt").open(encoding="latin1"):
        match = re.match(r"\s+\d+ (.*)", line)
        if match:
            for sentence in sentences(match.group(1).replace(":", ".").replace(";", ".")):
                if len(sentence.split()) >= 4:
                    yield sentence


def read_sources(folder):
    """{source: normalized sentences}"""
    raw = {}
    raw["wn_def"], raw["wn_ex"] = read_wordnet(folder)
    for name, read in (("austen", read_austen), ("jargon", read_jargon), ("devil", read_devil), ("bible", read_bible)):
        raw[name] = [piece for sentence in read(folder) for piece in pieces(sentence)]
    return raw


def choose_vocabulary(raw, hibari):
    """The texts' most usual words that the phonemizer's lexicon knows (most usual first), and all words that are
    allowed: these, contractions and the words of the templates."""
    lexicon = set()
    for part in ("gold", "silver"):
        with gzip.open(hibari / f"assets/lexicon_us_{part}.json.gz", "rt") as file:
            lexicon |= {word.lower() for word in json.load(file)}
    frequency, total = collections.Counter(), collections.Counter()
    for name, texts in raw.items():
        counts = collections.Counter(w for s in texts for w in re.findall(r"[a-z]+(?:'[a-z]+)?", s.lower()))
        n = sum(counts.values())
        for word, count in counts.items():
            frequency[word] += SHARE[name] * count / n
            total[word] += count
    usual = [w for w, _ in frequency.most_common() if total[w] >= 4 and w in lexicon and (len(w) > 1 or w in "ai")]
    usual = usual[:MAX_VOCABULARY]
    allowed = set(usual) | CONTRACTIONS
    for phrases in templates.VOCABULARY:
        for phrase in phrases:
            allowed |= set(phrase.lower().split())
    return usual, allowed - EXCLUDED - set(AMERICAN)


def random_words(n, usual, allowed, sources):
    """n sentences of 3 to 12 random words, frequent ones more often. Words that are usually capitalized stay so."""
    words = sorted(allowed)
    rank = {word: i for i, word in enumerate(usual)}
    weights = [1 / (rank.get(word, 9000) + 300) ** 0.6 for word in words]
    seen, capitalized = collections.Counter(), collections.Counter()
    for texts in sources.values():
        for text in texts:
            for word in re.findall(r"[A-Za-z']+", text)[1:]:
                seen[word.lower()] += 1
                capitalized[word.lower()] += word[0].isupper()
    for _ in range(n):
        chosen = R.choices(words, weights, k=R.randint(3, 12))
        chosen = [w.capitalize() if capitalized[w] * 2 > seen[w] else w for w in chosen]
        if R.random() < 0.4:
            k = R.randrange(len(chosen))
            chosen[k] += "," if k < len(chosen) - 1 else ""
        yield " ".join(chosen)


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    text_dir, hibari, out = map(Path, sys.argv[1:])
    raw = read_sources(text_dir)
    usual, allowed = choose_vocabulary(raw, hibari)

    sources = {}
    for name, texts in raw.items():
        accepted = (accept(text, allowed) for text in texts if text)
        sources[name] = [text for text in accepted if text]
    R.shuffle(sources["bible"])
    del sources["bible"][9000:]  # old-fashioned: a little of it is enough
    accepted = (accept(normalize(templates.sentence()), allowed) for _ in range(60000))
    sources["templates"] = [text for text in accepted if text]
    accepted = (accept(text, allowed) for text in random_words(30000, usual, allowed, dict(sources)))
    sources["salad"] = [text for text in accepted if text]

    seen, rows = set(), []
    for name, texts in sources.items():
        before = len(rows)
        for text in texts:
            key = re.sub(r"[^a-z' ]", "", text.lower())
            if key not in seen:
                seen.add(key)
                rows.append((name, text))
        print(f"{name}: {len(texts)} sentences, {len(rows) - before} kept, for example: {texts[len(texts) // 2]}")
    R.shuffle(rows)
    parts = {"train": [], "test": []}
    for row in rows:
        bucket = int(hashlib.md5(row[1].lower().encode()).hexdigest(), 16) % 1000
        parts["test" if bucket < 8 else "train"].append(row)
    for part, part_rows in parts.items():
        (out / f"{part}.json").write_text(json.dumps(part_rows))
        counts = collections.Counter(w for _, s in part_rows for w in re.findall(r"[a-z']+", s.lower()))
        print(f"{part}: {len(part_rows)} sentences, {sum(counts.values())} words, {len(counts)} different")


if __name__ == "__main__":
    main()
