"""The kinds of token that Stanford's PTBTokenizer 3.4.1 knows, written anew from what it puts out.

A kind may ask for what follows its token: that stands after the pattern's group, and counts for which kind is longest.
Words in the program's rules are found in any case, classes of letters only as they stand.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from peftkit.metrics.ptb_characters import DIGITS, LETTERS, MARKS, SYMBOLS, character_class

BREAK = "\u00a0"
"""Stands for a space inside of a token."""
SOFT = "\u00ad"
WRITTEN = {
    **{"(": "-LRB-", ")": "-RRB-", "[": "-LSB-", "]": "-RSB-", "{": "-LCB-", "}": "-RCB-"},
    **{"£": "#", "€": "$", "¤": "$", "₠": "$", "\x80": "$", "¢": "cents", "½": "1/2", "¼": "1/4", "¾": "3/4"},
    **{"⅓": "1/3", "⅔": "2/3", "…": "...", "---": "--", "----": "--", SOFT: "-"},
    **{"&lt;": "<", "&gt;": ">", "&amp;": "&"},
    **dict.fromkeys(("–", "—", "―", "\x96", "\x97", "&mdash;", "&ndash;", "&md;"), "--"),
}
"""Tokens that are written otherwise, by how they stand in lower case."""
STRAIGHT = str.maketrans(
    {**dict.fromkeys("’›\x92", "'"), **dict.fromkeys("‘‛‹\x91", "`")}
    | {**dict.fromkeys("”»\x94", "''"), **dict.fromkeys("“«\x93", "``")}
)


def as_it_stands(token: str) -> str:
    """Write tags and addresses."""
    return token.replace(" ", BREAK)


def word(token: str) -> str:
    """Write a word without its soft hyphens."""
    return token.replace(SOFT, "").replace("&amp;", "&")


def quoted(token: str) -> str:
    """Write an ending or quotation marks with straight ones."""
    return token.replace("&apos;", "'").replace("&quot;", '"').translate(STRAIGHT)


def bracketed(token: str) -> str:
    """Write what may hold round brackets and spaces."""
    return token.replace("(", "-LRB-").replace(")", "-RRB-").replace(" ", BREAK)


def nothing(_: str) -> str:
    """Write what is taken for a space."""
    return ""


def dots(_: str) -> str:
    """Write an ellipsis."""
    return "..."


@dataclass(frozen=True)
class TokenKind:
    """A kind of token: `starts` has `w`, `d` or `m` where it begins with a letter, a digit or any other mark."""

    starts: str
    pattern: re.Pattern[str]
    write: Callable[[str], str]


def kind(starts: str, pattern: str, write: Callable[[str], str] = word) -> TokenKind:
    """Return a kind; where `pattern` has a group, the token is the group and the rest is only looked at."""
    return TokenKind(starts, re.compile(pattern), write)


SPACE = r"[ \t\u00a0\u2000-\u200a\u3000]"
BLANK = r"[ \t\n\u00a0\u2000-\u200a\u3000]"
_letters, _marks, _digits = (character_class(ranges) for ranges in (LETTERS, MARKS, DIGITS))
ENTITY = r"&[aeiouAEIOU](?i:acute|grave|uml);"
PURE = rf"[{_letters}]"
DIGIT = rf"[{_digits}]"
LETTER = rf"(?:[{_letters}{_marks}]|{ENTITY})"
EITHER = rf"(?:[{_letters}{_marks}{_digits}]|{ENTITY})"
APOSTROPHE = r"(?:['’\x92]|(?i:&apos;))"
QUOTE = r"(?:['’\x92`‘‛\x91]|(?i:&apos;))"
ENDING = rf"{APOSTROPHE}(?:[msdMSD]|(?i:re|ve|ll))"
NOT = rf"(?i:n){QUOTE}(?i:t)"
WORD = rf"{LETTER}{EITHER}*(?:[.!?]{LETTER}{EITHER}*)*"
SHORT = rf"[A-Za-z{SOFT}]*[A-MO-Za-mo-z]{SOFT}*"
ACRONYM = r"[A-Za-z](?:\.[A-Za-z])+"
PIECE = rf"(?:[dDoOlL]{QUOTE}[{_letters}{_digits}])?[{_letters}{_digits}]+"
THING = rf"{PIECE}(?:[-_\u058a‐‑]{PIECE})*"
JOINED = r"[A-Z]+(?:(?:[+&]|(?i:&amp;))[A-Z]+)+"
HYPHENED = rf"[A-Za-z0-9][A-Za-z0-9.,{SOFT}]*(?:-(?:{ACRONYM}\.|[A-Za-z0-9{SOFT}]+))+"
SLASHED = r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:\\?/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}"
NUMBER = rf"[-+]?(?:{DIGIT}*(?:[.:,{SOFT}\u066b\u066c]{DIGIT}+)+|{DIGIT}+)"
NAME = r"[A-Za-z][A-Za-z0-9_:.-]*"
VALUE = r" *= *(?:'[^']*'|\"[^\"]*\")"
TAG = rf"<(?:[!?][A-Za-z-][^>\r\n]*|/{NAME} *|{NAME}(?: +{NAME}(?:{VALUE})?)* */? *)>"
PATH = r"/[^ \t\n\f\r\"<>|()]+[^ \t\n\f\r\"<>|.!?(){},-]"
PLACE = r"(?:[^ \t\n\f\r\"`'<>|.!?(){},-_$]+\.)+(?i:com|net|org|edu)"
SITE = r"(?i:www)\.(?:[^ \t\n\f\r\"<>|.!?(){},]+\.)+[a-zA-Z]{2,4}"
MAIL = (
    r"(?:<|(?i:&lt;))?(?i:mailto:)?[a-zA-Z0-9][^ \t\n\f\r\"<>|()\u00a0{}]*@"
    r"(?:[^ \t\n\f\r\"<>|(){}.\u00a0]+\.)*[^ \t\n\f\r\"<>|(){}.\u00a0]+(?:>|(?i:&gt;))?"
)
SUFFIX = (
    r"(?i:bat|bmp|class|cgi|cpp|c|dll|docx?|exe|gif|gz|html?|h|jar|java|jpe?g|mov|mp3|pdf|php|pl|png|ppt|ps|py|sql|tar|txt"
    r"|wav|xml|x|zip)"
)
AREA = r"(?:\([0-9]{2,3}\)[ \u00a0]?|(?:\+\+?)?(?:[0-9]{2,4}[- \u00a0])?[0-9]{2,4}[- \u00a0])"
PHONE = rf"{AREA}[0-9]{{3,4}}[- \u00a0]?[0-9]{{3,5}}"
DOTTED_PHONE = r"(?:(?:\+\+?)?[0-9]{2,4}\.)?[0-9]{2,4}\.[0-9]{3,4}\.[0-9]{3,5}"
# Where a word with a mark could be longer (`inc.a`), these still keep their full stop, and those of SOFTER do not.
FIRM = (
    r"(?:(?i:jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|mon|tues?|wed|thu|thurs|fri"
    r"|ala|ariz|calif|colo|conn|ct|dak|fla|ga|ind|kans?|ky|md|mich|minn|mo|mont|neb|nev|okla|penn|tenn|va|vt|wisc?|wyo"
    r"|inc|cos?|corp|ltd|plc|rt|bancorp|bhd|assn|univ|intl|sys|tel|est|ext|sq|bldg|blvd|rd|etc|al|seq"
    r"|jr|sr|bros|esq|(?:ed|ph)\.d)"
    r"|A(?i:z|rk)|D(?i:el)|I(?i:ll)|L(?i:a)|M(?i:[ai]ss)|O(?i:re)|P(?i:a)|T(?i:ex)|W(?i:ash)|(?i:pp?t)[ye](?i:s?))\."
)
SOFTER = (
    r"(?:(?i:mr|mrs|ms|drs?|profs?|sens?|reps?|attys?|lt|col|gen|messrs|govs?|adm|rev|maj|sgt|cpl|pvt|capt|ste?|ave|pres"
    r"|lieut|hon|brig|com?dr|cmdr|pfc|spc|sfc|supts?|det|mt|ft"
    r"|adj|adv|asst|assoc|ens|insp|mlle|mme|msgr|dept|elec|invt|natl|treas"
    r"|ph|vs|alex|wm|jos|cie|cf|a\.k\.a)|[Mm][ft](?i:g))\."
)
# After these words a sentence has begun, so a single letter with a full stop before them was the end of one.
STARTER = (
    r"(?:(?=[A-Z])(?i:a|about|according|additionally|after|an|as|at|but|earlier|he|her|here|however|if|in|it|last|many|more"
    r"|mr\.|ms\.|now|once|one|other|our|she|since|so|some|such|that|the|their|then|there|these|they|this|we|what|when|while"
    rf"|yet|you)|{TAG}){BLANK}"
)
KINDS = (
    # one word that is two; what is left of it is read anew
    kind("w", r"((?i:can))(?i:not)"),
    kind("w", r"((?i:gon|wan))(?i:na)|((?i:got))(?i:ta)|((?i:lem|gim))(?i:me)"),
    kind("m", r"('(?i:t))(?i:is|was)"),
    kind("m", TAG, as_it_stands),
    kind("m", r"(?i:&(?:mdash|ndash|MD);)|[–-―\x96\x97]"),
    kind("m", r"(?i:&amp;)"),
    kind("m", rf"(?i:&nbsp;)|{BLANK}+", nothing),
    kind("m", r"(?i:&(?:HT|TL|UR|LR|QC|QL|QR|odq|cdq|#[0-9]+);)"),
    # words and their endings
    kind("wm", rf"({WORD}){ENDING}"),
    kind("wm", rf"({SHORT}){NOT}"),
    kind("wm", WORD),
    kind("m", rf"{APOSTROPHE}(?:(?i:n){APOSTROPHE}?|(?i:em|till?|cause)|[2-9]0(?i:s))", as_it_stands),
    kind("w", rf"(?:[lLdDjJ]|(?i:dunkin|somethin|ol)){APOSTROPHE}", as_it_stands),
    kind("w", rf"[A-HJ-XZn]{QUOTE}{PURE}{{2,}}|(?i:o){QUOTE}(?i:o)", as_it_stands),
    kind("w", rf"{PURE}+[aeiouyAEIOUY]{QUOTE}[aeiouA-Z]{PURE}*", as_it_stands),
    kind("w", r"(?i:cont'd\.?|nor'easter|c'mon|e'er|s'mores|ev'ry|li'l|nat'l)", as_it_stands),
    kind("w", rf"((?i:y){APOSTROPHE}){PURE}"),
    kind("w", r"((?i:more))'(?i:n)"),
    # addresses
    kind("w", r"(?i:https?)://[^ \t\n\f\r\"<>|(){}]+[^ \t\n\f\r\"<>|.!?(){},-]", as_it_stands),
    kind("w", SITE, as_it_stands),
    kind("w", SITE + PATH, as_it_stands),
    kind("wdm", PLACE, as_it_stands),
    kind("wdm", PLACE + PATH, as_it_stands),
    kind("wdm", MAIL, as_it_stands),
    kind("m", rf"@[a-zA-Z_][a-zA-Z_0-9]*|#{LETTER}+", as_it_stands),
    kind("m", rf"({ENDING})[^A-Za-z]", quoted),
    kind("w", NOT, quoted),
    # numbers, dates and sums of money
    kind("d", rf"{DIGIT}{{1,2}}[-/]{DIGIT}{{1,2}}[-/]{DIGIT}{{2,4}}"),
    kind("wdm", NUMBER),
    kind("m", r"[⁺⁻₊₋]?(?:[⁰¹²³⁴-⁹]+|[₀-₉]+)"),
    kind("d", rf"(?:{DIGIT}{{1,4}}[- \u00a0])?{DIGIT}{{1,4}}(?:\\?/|⁄){DIGIT}{{1,4}}", bracketed),
    kind("m", r"[¼½¾⅓-⅞]"),
    kind("wm", r"-(?i:RRB|LRB|RCB|LCB|RSB|LSB)-|(?i:C\.D\.s|pro-|anti-|S(?:&|&amp;)P-500|S(?:&|&amp;)Ls|[cf]#|c\+\+)"),
    kind("w", rf"(?i:cap){APOSTROPHE}(?i:n)|(?i:c){APOSTROPHE}(?i:est)", as_it_stands),
    kind("wd", SLASHED),
    kind("wm", r"[A-Z]*\$|#"),
    kind("m", r"[¢£¤¥\x80₠€؋฿₤￠￡￥￦]"),
    # abbreviations with their full stop
    kind("w", rf"((?i:nos?|figs?|prop|pp|op|ca|art)\.){BLANK}?{DIGIT}"),
    kind("w", rf"((?i:pt[ey]|co)\.){SPACE}(?i:ltd|lim)"),
    kind("w", rf"({FIRM})(?s:..)"),
    kind("w", FIRM),
    kind("w", rf"([A-Za-z])\.{BLANK}+{STARTER}"),
    kind("w", rf"{SOFTER}|{ACRONYM}\.|[A-Za-z]\."),
    kind("m", rf"({APOSTROPHE}{DIGIT}{DIGIT}){BLANK}", as_it_stands),
    kind("wm", rf"({WORD}\.)[,;:\u3001]"),
    kind("dm", PHONE, bracketed),
    kind("dm", DOTTED_PHONE, bracketed),
    kind("m", r"(?i:&quot;|&lt;|&gt;)|<<|>>|[\"<>]", quoted),
    kind("m", r"([<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]])[^A-Za-z0-9]", bracketed),
    kind("m", r"[-^x=~<>']_[-^x=~<>']|\([-^x=~<>'][_.]?[-^x=~<>']\)|\([\^x=~<>']-[\^x=~<>'`]\)", bracketed),
    # files
    kind("wdm", rf"({EITHER}+(?:\.{EITHER}+)*\.{SUFFIX})(?:{BLANK}|[.?!,])", as_it_stands),
    # signs
    kind("m", r"[()\[\]{}]"),
    kind("m", r"-+"),
    kind("m", r"\.{3,5}|(?:\.[ \u00a0]){2,4}\.|[…\x85]", dots),
    kind("m", r"@+|#+|_+"),
    kind("m", r"\*+|(?:\\\*){1,3}"),
    kind("m", r"[,;:\u3001]|[?!]+|[.¡¿\u037e\u0589\u061f\u06d4\u0700-\u0702\u07fa\u3002]|=|/"),
    # words and numbers with marks inside
    kind("wd", rf"({HYPHENED}\.)[,;:\u3001]"),
    kind("wd", HYPHENED),
    kind("wdm", rf"({THING}\.)[,;:\u3001]"),
    kind("wdm", THING),
    kind("w", rf"({JOINED}\.)[,;:\u3001]"),
    kind("w", JOINED),
    # apostrophes and quotation marks
    kind("m", r"(')[A-Za-z][^ \t\n\r\u00a0]"),
    kind("m", ENDING, quoted),
    kind("m", r"''|'|(?i:&apos;)|[`‘’‛‹›“”«»\x91-\x94]{1,2}", quoted),
    kind("m", rf"[+{character_class(SYMBOLS)}]"),
)
"""In the program's order: of two that are equally long the earlier one is the token."""
