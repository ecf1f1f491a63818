"""The word lists that every grammar draws from."""

from __future__ import annotations


def listed(text: str) -> tuple[str, ...]:
    """Return the words or phrases of `text`, which commas separate."""
    return tuple(word.strip() for word in text.split(","))


COLOURS = listed(
    "red, green, blue, white, black, yellow, orange, purple, brown, grey, silver, golden, pink, amber, scarlet, "
    "crimson, ivory, violet, turquoise, olive, copper, dark blue, light green"
)
NAME_ADJECTIVES = listed(
    "Amber, Copper, Crooked, Silent, Gilded, Hidden, Velvet, Scarlet, Silver, Ivory, Rusty, Merry, Lucky, Jolly, "
    "Quiet, Wooden, Painted, Wandering, Singing, Dancing, Sleepy, Salty, Smoky, Sunny, Frosty, Windy, Little, Old, "
    "New, Royal, Crimson, Purple, Yellow, White, Black, Red, Blue, Green, Golden, Brass, Iron, Stone, Marble, "
    "Misty, Thirsty, Hungry, Flying, Laughing, Humble, Noble, Bright, Broken, Double, Twin, Northern, Southern, "
    "Eastern, Western, Violet, Tin"
)
NAME_NOUNS = listed(
    "Kettle, Lantern, Anchor, Barrel, Badger, Heron, Otter, Fox, Hound, Stag, Falcon, Sparrow, Owl, Robin, Swan, "
    "Goose, Hare, Pear, Plum, Cherry, Lemon, Fig, Walnut, Chestnut, Almond, Clove, Pepper, Saffron, Ginger, Basil, "
    "Thyme, Spoon, Fork, Ladle, Pan, Oven, Table, Candle, Harp, Fiddle, Drum, Bell, Crown, Shield, Arrow, Wheel, "
    "Wagon, Ship, Harbour, Bridge, Gate, Tower, Garden, Orchard, Meadow, Willow, Maple, Cedar, Oak, Elm, Birch, "
    "River, Brook, Lake, Island, Pearl, Coral, Star, Moon, Comet, Cloud, Thistle, Clover, Poppy, Tulip, Rose, Lily, "
    "Ivy, Fern, Acorn, Bear, Wolf, Bull, Pony, Donkey, Monkey, Tiger, Whale, Dolphin, Trout, Salmon, Oyster, "
    "Lobster, Key, Button, Feather, Compass"
)
VENUE_ENDINGS = listed(
    "Kitchen, House, Table, Bistro, Grill, Diner, Tavern, Inn, Arms, Rooms, Garden, Corner, Court, Place, Bar, "
    "Lounge, Canteen, Cellar, Terrace, Hall, Brasserie, Pantry, Larder, Parlour, Yard, Eatery"
)
VENUE_TYPES = listed(
    "restaurant, pub, coffee shop, café, bar, bistro, tea room, bakery, diner, tavern, wine bar, pizzeria, steak "
    "house, sandwich bar, canteen, brasserie, inn, snack bar"
)
CUISINES = listed(
    "English, French, Italian, Chinese, Japanese, Indian, Thai, Greek, Spanish, Turkish, Mexican, Korean, "
    "Vietnamese, Lebanese, Polish, German, Portuguese, Scottish, Irish, Welsh, Moroccan, American, Swedish, Danish, "
    "Russian, Ethiopian, Hungarian, Peruvian, Brazilian, vegetarian, vegan, seafood, fast"
)
AREAS = listed(
    "city centre, riverside, old town, harbour, market square, station quarter, university district, west end, east "
    "end, north side, south bank, castle hill, park area, docklands, high street, seafront, valley, shopping "
    "district"
)
PRICE_WORDS = listed("cheap, moderate, high, low, average, expensive, affordable, reasonable, fair, budget")
RATING_WORDS = listed("low, average, high, poor, decent, good, very good, excellent, outstanding, mediocre")
DISHES = listed(
    "soup, fish pie, roast beef, pasta, risotto, noodles, curry, pancakes, salad, stew, grilled chicken, omelette, "
    "dumplings, sausages, apple tart, cheese board, lamb chops, mushroom pie, baked potato, fried rice, tomato "
    "soup, chocolate cake, lemon cake, ice cream, garlic bread, steak, sushi, pizza, burgers, sandwiches, porridge, "
    "waffles"
)
INGREDIENTS = listed(
    "flour, butter, sugar, salt, milk, cream, rice, onion, garlic, tomato, potato, carrot, cheese, lemon juice, "
    "olive oil, black pepper, basil, parsley, honey, yeast, chicken, beef, cod, salmon, beans, lentils, mushrooms, "
    "spinach, ginger, cinnamon, almonds, raisins, apples, pears, plums, cocoa, vanilla, mustard, vinegar, egg, "
    "oats, leek, cabbage"
)
OBJECTS = listed(
    "apple, book, pencil, marble, stamp, coin, shell, box, ticket, cookie, candle, flower, card, balloon, button, "
    "bottle, basket, chair, cup, plate, brick, toy, sticker, ribbon, orange, pear, egg, loaf, sandwich, muffin, "
    "bead, stone, hat, shirt, sock, glove, scarf, key, lamp, bag, photo, letter, ball, kite, puzzle, crayon, "
    "notebook, page, peach, lemon"
)
ANIMALS = listed(
    "cat, dog, rabbit, fox, owl, mouse, hen, duck, goose, pony, goat, sheep, hedgehog, squirrel, frog, turtle, "
    "parrot, kitten, puppy, donkey, bear, crow, otter, badger, hamster, lamb, cow, pig, swan, robin"
)
PROFESSIONS = listed(
    "teacher, baker, farmer, doctor, nurse, writer, painter, singer, engineer, architect, pilot, sailor, gardener, "
    "lawyer, chemist, historian, librarian, carpenter, tailor, dentist, journalist, actor, composer, photographer, "
    "astronomer, politician, poet, chef, mechanic, musician, scientist, judge, fisherman, plumber, waiter, athlete, "
    "footballer, cyclist, swimmer, explorer, botanist, economist, physicist, sculptor, dancer, conductor, "
    "goalkeeper, astronaut"
)
RELATIVES = listed("brother, sister, cousin, uncle, aunt, grandmother, grandfather, mother, father, friend, neighbour")
ROOMS = listed("kitchen, garden, attic, cellar, bedroom, barn, shed, hall, library, garage, workshop, classroom, yard")
OUTDOORS = listed(
    "forest, river, hill, beach, park, lake, village, meadow, bridge, market, mill, cave, island, harbour, road, "
    "field, castle, station, orchard, pond"
)
FEELINGS = listed("happy, sad, tired, angry, proud, worried, surprised, hungry, afraid, excited, lonely, calm, curious")
WEATHER = listed(
    "sunny, cloudy, rainy, windy, foggy, stormy, snowy, cold, warm, hot, dry, wet, mild, frosty, bright, grey, humid"
)
MONTHS = listed("January, February, March, April, May, June, July, August, September, October, November, December")
DAYS = listed("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday")
MATERIALS = listed("stone, brick, wood, glass, steel, concrete, marble, granite, iron, sandstone, timber, limestone")
LANGUAGES = listed(
    "English, French, German, Spanish, Italian, Portuguese, Dutch, Danish, Swedish, Polish, Greek, Turkish, Arabic, "
    "Hindi, Japanese, Korean, Welsh, Irish, Czech, Finnish"
)
STYLES = listed(
    "Gothic, Baroque, modern, Romanesque, Victorian, Georgian, Renaissance, neoclassical, Art Deco, brutalist"
)
SPORTS = listed("football, basketball, cricket, rugby, hockey, tennis, volleyball, handball, baseball, rowing")
BOOK_GENRES = listed(
    "novel, short story collection, biography, detective story, fantasy novel, comedy, history book, travel book, "
    "science fiction novel, poetry collection, play, children's book, memoir, thriller"
)
SUBJECTS = listed(
    "mathematics, history, music, physics, chemistry, biology, law, medicine, geography, philosophy, economics, "
    "art, engineering, astronomy, literature, botany, geology, computer science"
)
VEHICLES = listed("bus, train, bicycle, ship, tram, ferry, lorry, van, taxi, boat, car, motorbike")
POSITIVE = listed(
    "good, great, lovely, wonderful, excellent, fine, pleasant, delicious, splendid, charming, superb, nice"
)
NEGATIVE = listed("bad, poor, terrible, dull, disappointing, awful, slow, noisy, cold, bland, dreadful, unpleasant")
ABSTRACT = listed(
    "patience, courage, kindness, honesty, friendship, freedom, silence, luck, memory, truth, beauty, hope, time, "
    "work, knowledge, order, peace, trust, wisdom, joy"
)
