"""The tokens that ROUGE-L, CIDEr and the captioning BLEU count: Penn Treebank conventions, lower-cased, no punctuation.

It does what Stanford's PTBTokenizer does with the options of the COCO captioning tools, written anew from what it puts
out: at every position the longest of the kinds of token below wins, the earlier kind where two are equally long.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

# What the captioning tools drop. Brackets are already written in lower case by then, so they stay.
PUNCTUATION = frozenset(("''", "'", "``", "`", '"', ".", "?", "!", ",", ":", "-", "--", "...", ";"))
WRITTEN = {
    **{"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", "\\/": "/"},
    **{"£": "#", "€": "$", "¤": "$", "¢": "cents", "¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"},
    **{"–": "--", "—": "--", "―": "--", "…": "...", "&lt;": "<", "&gt;": ">"},
}
QUOTES = str.maketrans(
    {"’": "'", "›": "'", "‘": "`", "‛": "`", "‹": "`", **dict.fromkeys("“”„«»", '"'), "\u00ad": None}
)
ENTITIES = (("&apos;", "'"), ("&quot;", '"'), ("&amp;", "&"))

LETTER = r"(?:(?![²³¹⁰ⁱ⁴-⁹⁺-₎¼-¾⅐-ↈ①-⓿])[^\W\d_]|[\u0300-\u036f])"
ALPHANUMERIC = rf"(?:{LETTER}|\d)"
WORD = rf"{LETTER}{ALPHANUMERIC}*(?:[.!?]{LETTER}{ALPHANUMERIC}*)*"
PIECE = rf"(?:[dDoOlL]['`])?{ALPHANUMERIC}+"
NUMBER = r"(?:\d+(?:[.:,]\d+)*|(?:[.:,]\d+)+)"
ACRONYM = r"[A-Za-z](?:\.[A-Za-z])+"
ABBREVIATION = (
    r"(?:Mr|Mrs|Ms|Drs?|Profs?|Sens?|Reps?|Attys?|Lt|Col|Gen|Messrs|Govs?|Adm|Rev|Maj|Sgt|Cpl|Pvt|Capt|Ste?|Ave|Pres|Lieut|Hon"
    r"|Brig|Com?dr|Pfc|Supts?|Det|Mt|Ft|Adj|Asst|Assoc|Insp|Mlle|Mme|Msgr|Jr|Sr|Bros|Esq|Inc|Cos?|Corp|Ltd|Plc|Bancorp|Dept|Bhd"
    r"|Assn|Univ|Intl|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec|Mon|Tues?|Wed|Thurs?|Fri|Ala|Ariz|Ark|Calif|Colo|Conn|Dak|Del"
    r"|Fla|Ga|Ill|Ind|Kans?|Ky|La|Mass|Md|Mich|Minn|Mo|Mont|Neb|Nev|Okla|Ore|Pa|Penn|Tenn|Tex|Va|Vt|Wash|Wisc?|Wyo|Blvd|Rd"
    r"|[Vv]s|[Ee]tc|[Aa]l|[Cc]a|[Cc]f|[Ss]q|Alex|Wm|Jos|Cie|Ph\.D|Ed\.D|a\.k\.a)\."
)
# After these words a sentence has begun, so a single letter with a full stop before them was the end of one.
STARTERS = (
    r"(?:About|After|Although|Among|And?|Another|Are|As|At|A|Because|Both|But|By|Did|Do|During|Each|Every|For|From|He|Her|Here|His"
    r"|However|How|If|Its?|In|Is|I|Last|Many|More|Most|Mr\.|Ms\.|Now|Once|One|On|Other|Or|Our|Over|She|Since|Some|So|Such|That|Their"
    r"|Then|There|These|They|The|This|Those|Though|Under|Until|Was|We|Were|What|When|Whereas|Which|While|Who|Why|With|Yet|You)(?=\s|$)"
)
URL_PATH = r"[^\s\"<>|()]+[^\s\"<>|.!?(){},-]"
KINDS = tuple(
    re.compile(pattern)
    for pattern in (
        # addresses and tags
        r"https?://[^\s\"<>|(){}]+[^\s\"<>|.!?(){},-]",
        rf"www\.(?:[^\s\"<>|.!?(){{}},]+\.)+[a-zA-Z]{{2,4}}(?:/{URL_PATH})?",
        rf"(?:[^\s\"`'<>|.!?(){{}},_$-]+\.)+(?:com|net|org|edu)(?!\w)(?:/{URL_PATH})?",
        r"[a-zA-Z0-9][^\s\"<>|(){}]*@(?:[^\s\"<>|(){}.]+\.)*[^\s\"<>|(){}\[\].,;:]+",
        r"</?[A-Za-z!?][^<>]*>",
        r"[@#][A-Za-z_]\w*",
        # words, with their full stop where it is not the sentence's
        WORD,
        rf"{WORD}\.(?=\s*[,;:])",
        rf"{PIECE}(?:[-_‐‑]{PIECE})*",
        rf"[A-Za-z0-9][A-Za-z0-9.,]*(?:-(?:[A-Za-z0-9]+|{ACRONYM}\.))+",
        r"[A-Z]+(?:[+&][A-Z]+)+",
        r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}",
        ABBREVIATION,
        rf"{ACRONYM}\.",
        rf"[A-Za-z]\.(?!\s+{STARTERS})",
        r"(?:[Nn]os?|[Ff]igs?|[Pp]rop|[Vv]ols?|[Pp]p|[Aa]rts?)\.(?=\s?\d)",
        # apostrophes that belong to the word
        r"'n'?|'em(?!\w)|'[2-9]0s|'till?|'cause|cont'd|nor'easter|c'mon|e'er|s'mores|ev'ry|li'l|nat'l|[lLdDjJ]'|y'(?=\w)",
        rf"[A-HJ-XZn]['`]{LETTER}{{2,}}|{LETTER}+[aeiouyAEIOUY]['`][aeiouA-Z]{LETTER}*",
        rf"'(?:[msdMSD]|re|ve|ll)(?!{LETTER})",
        # numbers, sums of money and dates
        rf"[-+]?{NUMBER}",
        r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}|\d{4}[-/]\d{1,2}[-/]\d{1,2}",
        r"[A-Z]*\$",
        r"[⁺⁻₊₋]?(?:[⁰¹²³⁴-⁹]+|[₀-₉]+)",
        # signs
        r"&(?:lt|gt);|\\/|\.{3,5}|…|-{2,}|[–-―]|[?!]{2,}|``|''",
        r"[!-ÿ‐-⯿\u3000-〿！-･]",
    )
)
# Most of any text: plain words and stops before a space, where no other kind of token can be longer.
PLAIN = re.compile(r"(?:[A-Za-z]+(?:-[A-Za-z]+)*(?=,?\s)|[,.](?=\s))")
ENDING = rf"(?:'(?:[msdMSD]|[rRvV][eE]|ll|LL)|[nN]'[tT])(?!{LETTER})"
WORD_WITH_ENDING = re.compile(rf"({LETTER}{ALPHANUMERIC}*?(?:[.!?]{LETTER}{ALPHANUMERIC}*?)*)({ENDING})")
FUSED = re.compile(
    r"(can)(not)|(gon)(na)|(got)(ta)|(lem)(me)|(gim)(me)|(wan)(na)|('t)(is)|('t)(was)|(more)('n)", re.IGNORECASE
)


def tokenize_lines(lines: Sequence[str]) -> list[tuple[str, ...]]:
    """Tokenize texts that the official program reads as lines of one file.

    It looks beyond the end of a line: a single letter and full stop at the end are two tokens only if the next line
    begins with a word that begins sentences.
    """
    following = (re.match(STARTERS, line.lstrip()) for line in (*lines[1:], ""))
    return [tokenize(line, match[0] if match else "") for line, match in zip(lines, following, strict=True)]


def tokenize_groups(groups: Sequence[Sequence[str]]) -> list[list[tuple[str, ...]]]:
    """Tokenize the references of each input, which the official program reads one after the other."""
    lines = iter(tokenize_lines([line for group in groups for line in group]))
    return [[next(lines) for _ in group] for group in groups]


@lru_cache(maxsize=1 << 16)
def tokenize(text: str, following: str = "") -> tuple[str, ...]:
    """Split `text` into lower-cased tokens without punctuation; `following` is the next line's first word."""
    text = text.translate(QUOTES)
    for entity, character in ENTITIES:
        text = text.replace(entity, character)
    end = len(text.rstrip())
    text = f"{text}\n{following}"
    tokens, position = [], 0
    while position < end:
        if text[position].isspace():
            position += 1
            continue
        pieces = split_at(text, position)
        for token in pieces:
            tokens.append(WRITTEN.get(token, token).lower())
            position += len(token)
        position += not any(pieces)
    return tuple(token for token in tokens if token and token not in PUNCTUATION)


def split_at(text: str, position: int) -> Iterable[str]:
    """Return the token at `position`, or two where a word and its ending part; an empty one for an unknown sign."""
    plain = PLAIN.match(text, position)
    if plain:
        longest = plain[0]
    else:
        matches = (kind.match(text, position) for kind in KINDS)
        longest = max((match[0] for match in matches if match), key=len, default="")
        ending = WORD_WITH_ENDING.match(text, position)
        if ending and len(ending[0]) >= len(longest):
            return ending.groups()
    fused = FUSED.fullmatch(longest)
    return tuple(part for part in fused.groups() if part) if fused else (longest,)
