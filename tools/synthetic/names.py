"""Invented names, composed of syllables and words, so that copying a name has to be learnt and cannot be remembered."""

from __future__ import annotations

from random import Random

from synthetic import words
from synthetic.grammar import capital, pick
from synthetic.words import listed

ONSETS = listed(
    "b, br, c, ch, cl, cr, d, dr, f, fl, fr, g, gl, gr, h, j, k, kl, l, m, n, p, pl, pr, qu, r, s, sh, sk, sl, "
    "st, str, t, th, tr, v, w, y, z"
)
VOWELS = listed("a, e, i, o, u, a, e, i, o, u, ai, ea, ee, ie, oa, ou, ei, ia")
ACCENTED = listed("é, è, á, à, ö, ü, ó, ô, í, ñ, ç, å, ä, ø, ê, ú")
CODAS = listed("b, d, g, k, l, ll, m, n, nd, ng, nt, p, r, rd, rk, rn, rt, s, ss, st, t, th, x, z") + ("",) * 14
PLACE_ENDINGS = listed(
    "ton, ham, bury, ford, mouth, wick, field, dale, moor, well, bridge, port, stead, worth, ley, burg, holm, by, "
    "mere, wood, haven, gate, cliff, pool, stone, minster, combe"
)
FOREIGN_ENDINGS = listed(
    "ville, grad, ova, opolis, stadt, dorf, heim, ia, a, o, ino, ana, ette, ac, eira, und, sk, ow, ara, os"
)
SURNAME_ENDINGS = listed(
    "son, er, well, man, ley, ton, s, ski, ez, ini, ard, en, and, ford, field, more, low, ham, wood, smith, berg, ova"
)
COMPANY_ENDINGS = listed("Ltd, Group, Foods, Motors, Press, Airlines, Bank, Records, Brothers, Works")
WOMEN = listed(
    "Anna, Mary, Lucy, Emma, Clara, Alice, Rosa, Nora, Ida, Maya, Lena, Sofia, Julia, Ella, Grace, Hanna, Irene, "
    "Jane, Kate, Laura, Mia, Nina, Olga, Paula, Ruth, Sara, Tessa, Vera, Wendy, Zoe, Amina, Beatriz, Chloé, "
    "Dalia, Eva, Fatima, Greta, Helen, Ines, Joan, Kira, Leila, Mona, Noor, Priya, Renée, Susan, Tara, Yuki, "
    "Abigail, Betty, Carmen, Diana, Edith, Fiona, Gloria, Hazel, Ivy, Joyce, Karen, Linda, Martha, Nancy"
)
MEN = listed(
    "Adam, Ben, Carl, David, Erik, Frank, George, Henry, Ivan, Jack, Karl, Leo, Mark, Noah, Oscar, Peter, Ralph, "
    "Sam, Tom, Victor, Walter, Yusuf, Alan, Bruno, Chris, Daniel, Emil, Felix, Gavin, Hugo, Ian, James, Kevin, "
    "Luis, Martin, Nils, Omar, Paul, Robert, Simon, Theo, Ulrich, Vincent, William, Xavier, Zack, Ahmed, Björn, "
    "César, Diego, Edward, Finn, Hassan, Igor, José, Kenji, Liam, Mateo, Otto, Rafael, Tim, Arthur"
)


def syllable(rng: Random) -> str:
    """Return an onset, a vowel and perhaps a coda; one vowel in forty has an accent."""
    vowel = pick(rng, ACCENTED) if rng.random() < 0.025 else pick(rng, VOWELS)
    return pick(rng, ONSETS) + vowel + pick(rng, CODAS)


def stem(rng: Random, longest: int = 2) -> str:
    """Return one to `longest` syllables, mostly one."""
    count = 1 if rng.random() < 0.6 else rng.randint(1, longest)
    return "".join(syllable(rng) for _ in range(count))


def place(rng: Random) -> str:
    """Name a town."""
    ending = pick(rng, PLACE_ENDINGS) if rng.random() < 0.6 else pick(rng, FOREIGN_ENDINGS)
    name = capital(stem(rng) + ending)
    chance = rng.random()
    if chance < 0.06:
        return (
            f"{pick(rng, ('New', 'Old', 'Upper', 'Lower', 'Great', 'Little', 'North', 'South', 'East', 'West'))} {name}"
        )
    if chance < 0.09:
        return f"{pick(rng, ('Saint', 'San', 'Santa', 'Port', 'Fort', 'Mount', 'Lake', 'El'))} {name}"
    if chance < 0.11:
        return f"{name}-{pick(rng, ('on-Sea', 'under-Hill', 'by-the-Water', 'am-See', 'sur-Mer'))}"
    return name


def country(rng: Random) -> str:
    """Name a country that does not exist."""
    name = capital(stem(rng) + pick(rng, ("ia", "land", "istan", "ania", "ora", "mark", "ica", "avia", "uay", "esia")))
    return f"{pick(rng, ('Republic of', 'Kingdom of', 'United'))} {name}" if rng.random() < 0.06 else name


def surname(rng: Random) -> str:
    """Return a family name."""
    name = capital(stem(rng) + (pick(rng, SURNAME_ENDINGS) if rng.random() < 0.7 else ""))
    chance = rng.random()
    if chance < 0.03:
        return f"{pick(rng, ('van', 'de', 'von', 'del', 'di'))} {name}"
    if chance < 0.06:
        return pick(rng, ("Mc", "O’", "O'", "Mac")) + name
    return name


def first_name(rng: Random) -> tuple[str, str]:
    """Return a first name and its pronoun, he or she."""
    pronoun = pick(rng, ("he", "she"))
    if rng.random() < 0.15:
        return capital(stem(rng) + ("a" if pronoun == "she" else pick(rng, ("", "o", "us", "an")))), pronoun
    return pick(rng, WOMEN if pronoun == "she" else MEN), pronoun


def person(rng: Random) -> tuple[str, str]:
    """Return a full name and its pronoun."""
    first, pronoun = first_name(rng)
    middle = f" {pick(rng, tuple('ABCDEFGHIJKLMNOPRSTVW'))}." if rng.random() < 0.08 else ""
    return f"{first}{middle} {surname(rng)}", pronoun


def someone(rng: Random) -> str:
    """Return a full name."""
    return person(rng)[0]


def venue(rng: Random) -> str:
    """Name a restaurant, pub or hotel."""
    chance = rng.random()
    adjective, noun, ending = (
        pick(rng, list_) for list_ in (words.NAME_ADJECTIVES, words.NAME_NOUNS, words.VENUE_ENDINGS)
    )
    if chance < 0.3:
        return f"The {adjective} {noun}"
    if chance < 0.45:
        return f"{adjective} {noun}"
    if chance < 0.55:
        return f"{noun} {ending}" if rng.random() < 0.6 else f"The {noun} {ending}"
    if chance < 0.65:
        return f"The {noun} {pick(rng, ('and', '&'))} {pick(rng, words.NAME_NOUNS)}"
    if chance < 0.75:
        return f"{surname(rng)}'s" + (f" {ending}" if rng.random() < 0.4 else "")
    if chance < 0.85:
        return f"Café {pick(rng, (place, surname, syllable_name))(rng)}" if rng.random() < 0.7 else f"{noun} Café"
    if chance < 0.95:
        return f"{pick(rng, (place, surname, syllable_name))(rng)} {ending}"
    return syllable_name(rng)


def syllable_name(rng: Random) -> str:
    """Return one made-up word."""
    return capital(stem(rng, 3) + pick(rng, ("", "", "a", "o", "i", "um")))


def title(rng: Random) -> str:
    """Name a book or a film."""
    adjective, noun, other = pick(rng, words.NAME_ADJECTIVES), pick(rng, words.NAME_NOUNS), pick(rng, words.NAME_NOUNS)
    return pick(
        rng,
        (
            f"The {adjective} {noun}",
            f"The {noun} and the {other}",
            f"The {noun} of {place(rng)}",
            f"{pick(rng, ('A Winter', 'A Summer', 'Seven Days', 'One Night', 'Letters', 'Life'))} in {place(rng)}",
            f"{capital(pick(rng, words.ABSTRACT))} and {capital(pick(rng, words.ABSTRACT))}",
            f"A {pick(rng, ('History', 'Theory', 'Book', 'Song', 'Dream'))} of {capital(pick(rng, words.ABSTRACT))}",
            f"{syllable_name(rng)}",
            f"The Last {noun}",
        ),
    )


def company(rng: Random) -> str:
    """Name a company."""
    start = pick(rng, (surname, place, syllable_name))(rng)
    return f"{start} {pick(rng, COMPANY_ENDINGS)}"
