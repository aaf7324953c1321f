"""Random everyday English sentences from templates, with numbers, dates and times of day written as words.

Used by make_text.py: `sentence()` gives one sentence; the word lists are exported, for the vocabulary. The sequence of
sentences is the same in every run. Templates and lists were written for this project.
"""

import random


def phrases(text):
    """The phrases of a list that is separated by semicolons."""
    return [phrase.strip() for phrase in text.split(";")]


FIRST_NAMES = phrases("""
    James; Mary; John; Linda; Robert; Sarah; Michael; Emma; David; Anna; William; Laura; Richard; Susan; Joseph; Karen;
    Thomas; Nancy; Charles; Lisa; Daniel; Helen; Matthew; Sandra; Anthony; Ashley; Mark; Emily; Paul; Kate; Steven;
    Alice; Andrew; Rachel; Kevin; Julia; Brian; Grace; George; Olivia; Edward; Sophie; Peter; Claire; Henry; Lucy;
    Jack; Martha; Oliver; Rose; Simon; Victoria; Tom; Jane; Sam; Maria; Ben; Eva; Max; Nina; Alex; Diana; Martin; Carol
""")
LAST_NAMES = phrases("""
    Smith; Johnson; Williams; Brown; Jones; Miller; Davis; Wilson; Anderson; Taylor; Moore; Jackson; Martin; Lee;
    Thompson; White; Harris; Clark; Lewis; Robinson; Walker; Young; Allen; King; Wright; Scott; Hill; Green; Adams;
    Baker; Nelson; Carter; Mitchell; Roberts; Turner; Phillips; Campbell; Parker; Evans; Edwards; Collins; Stewart;
    Morris; Murphy; Cook; Rogers; Morgan; Cooper; Peterson; Reed; Bailey; Bell; Kelly; Howard; Ward; Cox; Richardson;
    Wood; Watson; Brooks; Bennett; Gray; Hughes; Price; Myers; Long; Foster; Ross
""")
CITIES = phrases("""
    London; Paris; New York; Boston; Chicago; Berlin; Tokyo; Madrid; Rome; Dublin; Sydney; Toronto; Vienna; Moscow;
    Oxford; Cambridge; Seattle; Denver; Dallas; Houston; Miami; Detroit; Atlanta; Portland; Philadelphia; Manchester;
    Glasgow; Edinburgh; Amsterdam; Brussels; Zurich; Geneva; Milan; Venice; Athens; Cairo; Delhi; Singapore
""")
MONTHS = phrases("""
    January; February; March; April; May; June; July; August; September; October; November; December
""")
DAYS = phrases("Monday; Tuesday; Wednesday; Thursday; Friday; Saturday; Sunday")
ONES = phrases("""
    zero; one; two; three; four; five; six; seven; eight; nine; ten; eleven; twelve; thirteen; fourteen; fifteen;
    sixteen; seventeen; eighteen; nineteen
""")
TENS = phrases("x; x; twenty; thirty; forty; fifty; sixty; seventy; eighty; ninety")
ORDINALS = phrases("""
    first; second; third; fourth; fifth; sixth; seventh; eighth; ninth; tenth; eleventh; twelfth; thirteenth;
    fourteenth; fifteenth; sixteenth; seventeenth; eighteenth; nineteenth; twentieth; twenty first; twenty second;
    twenty third; twenty fourth; twenty fifth; twenty sixth; twenty seventh; twenty eighth; twenty ninth; thirtieth;
    thirty first
""")
PERSONS = phrases("""
    my mother; my father; my brother; my sister; my friend; the teacher; the doctor; our neighbor; the manager;
    the driver; a young man; an old woman; the little girl; the boy; the police officer; my boss; the lawyer;
    the engineer; the nurse; the captain; the president; the artist; the writer; a stranger; the children; her husband;
    his wife; the student; my uncle; my aunt; our guest; the waiter; the farmer; the mayor; my cousin; the singer;
    the scientist; the pilot
""")
THINGS = phrases("""
    book; letter; car; table; chair; phone; computer; bag; key; window; door; picture; cup of coffee; glass of water;
    newspaper; ticket; box; map; camera; coat; bottle; watch; knife; plate; piano; guitar; bicycle; lamp; bed; clock;
    hat; shirt; pair of shoes; umbrella; pen; pencil; notebook; sandwich; apple; cake; loaf of bread; bowl of soup;
    bunch of flowers; gift; ring; radio; television; mirror; blanket; basket; ball; boat; toy; ladder; hammer; rope;
    candle; suitcase; wallet; passport; message; report; magazine; painting; sofa; keyboard; battery; engine; machine;
    garden; house
""")
PLACES = phrases("""
    kitchen; garden; office; school; station; airport; hospital; library; park; market; restaurant; hotel; church;
    museum; bank; theater; beach; river; mountain; forest; village; city center; living room; bedroom; bathroom;
    garage; farm; factory; bridge; post office; swimming pool; supermarket; shop; street; corner; harbor; castle;
    stadium; university; parking lot; basement; hall; waiting room; bus stop; coffee shop
""")
ADJECTIVES = phrases("""
    new; old; big; small; red; blue; green; yellow; black; white; beautiful; broken; clean; dirty; heavy; light;
    expensive; cheap; strange; lovely; warm; cold; hot; dark; bright; empty; full; long; short; soft; hard; quiet;
    loud; fast; slow; strong; weak; rich; poor; simple; difficult; easy; important; interesting; boring; dangerous;
    safe; happy; sad; angry; tired; hungry; busy; famous; popular; fresh; wonderful; terrible; perfect; modern;
    ancient; narrow; wide; deep; thick; thin
""")
VERBS_PAST = phrases("""
    bought; sold; found; lost; took; left; brought; saw; broke; fixed; opened; closed; cleaned; painted; moved;
    carried; dropped; picked up; put down; forgot; remembered; wanted; needed; liked; loved; hated; borrowed; returned;
    kept; hid; showed me; gave me; sent me; threw away; paid for; asked about; looked at; talked about; pointed at;
    thought about
""")
VERBS = phrases("""
    buy; sell; find; take; bring; see; fix; open; close; clean; paint; move; carry; pick up; use; check; read; show me;
    give me; send me; pay for; look at; talk about; think about; change; finish; start; keep; try; order; choose;
    return; borrow
""")
ACTIVITIES = phrases("""
    go for a walk; have dinner; watch a movie; play football; listen to music; go shopping; take a shower;
    cook something; make a phone call; read a book; go to bed; get up early; drink some tea; learn English;
    write an email; take a picture; catch the train; visit my parents; wash the dishes; drive to work; ride a bike;
    go swimming; meet our friends; do the laundry; walk the dog; feed the cat; take a break; save some money;
    travel around the world; find a better job; play the piano; speak with the manager; book a table; rent a car;
    stay at home; wait for the bus; leave early; eat something; clean the house; turn off the light
""")
WEATHER = phrases("""
    sunny; cloudy; rainy; windy; cold; warm; hot; foggy; stormy; freezing; nice; dry; wet; humid; cool
""")
FOOD = phrases("""
    coffee; tea; orange juice; milk; bread; butter; cheese; chicken; rice; soup; salad; pasta; pizza; fish; beef;
    potatoes; tomatoes; carrots; beans; eggs; apples; bananas; strawberries; chocolate; ice cream; sugar; salt; pepper;
    honey; cookies; breakfast; lunch; dinner; water; wine; beer; lemon; garlic; onions; mushrooms; noodles; sandwiches
""")
TIMES = phrases("""
    today; tomorrow; yesterday; this morning; this afternoon; this evening; tonight; last night; last week; next week;
    next month; last year; next year; in the morning; at night; after lunch; before dinner; on the weekend; at noon;
    at midnight; all day; every day; right now; later; soon; again; a few minutes ago; two days ago; in a few hours;
    as soon as possible
""")
SUBJECTS_PLURAL = phrases("I; You; We; They")
SUBJECTS_SINGULAR = phrases("He; She")
COUNTRIES = phrases("""
    France; Germany; Italy; Spain; England; Ireland; Scotland; Canada; America; Mexico; Brazil; China; Japan; India;
    Australia; Russia; Poland; Sweden; Norway; Denmark; Greece; Turkey; Egypt; Kenya
""")
LANGUAGES = phrases("""
    English; French; German; Spanish; Italian; Chinese; Japanese; Russian; Greek; Latin; Arabic; Portuguese; Dutch
""")
ANIMALS = phrases("""
    dog; cat; horse; bird; fish; cow; sheep; rabbit; mouse; lion; tiger; elephant; bear; wolf; fox; monkey; snake;
    duck; chicken; frog; spider; bee; eagle; dolphin; whale
""")

COUNTABLE = phrases("""
    people; children; students; books; cars; birds; men; women; houses; trees; boxes; chairs; letters; hours; days;
    years
""")
UNCOUNTABLE = phrases("time; money; space; water; food; light; people; information; energy")
ANIMALS_DID = phrases("slept; played; waited; lived; looked for food; were drinking water")
SWITCHABLE = phrases("lights; radio; television; heating; computer; music")
SPOTS = phrases("left; right; table; floor; shelf; wall")
DISTANCES = phrases("meters; miles; yards; feet; minutes")
WAYS = phrases("across; through; around; into; out of; behind")
FIXED = phrases("""
    Good morning, everyone.; Good evening, ladies and gentlemen.; Thank you very much.; You are welcome.;
    I'm sorry, I didn't hear you.; Could you say that again, please?; What time is it?; Where are you from?;
    Nice to meet you.; See you later.; Have a nice day.; I don't know.; I don't think so.; Of course.;
    That's a good idea.; What do you mean?; How much does it cost?; Can you help me, please?;
    Excuse me, where is the station?; I have no idea.; It doesn't matter.; Let me think about it.;
    I'm not sure about that.; That sounds great.; Take your time.; Please wait a moment.; What happened?;
    Are you ready?; Let's go.; Be careful.; I hope so.; Don't worry about it.; Congratulations!; Happy birthday!;
    Is there anything else I can do for you?; This is a test.; This is a test of the speech recognition system.;
    Testing, one, two, three.; The quick brown fox jumps over the lazy dog.; How do you do?; Yes, please.;
    No, thank you.; Maybe.; I agree with you.; I'm afraid not.; Who is calling, please?;
    Please leave a message after the tone.
""")

# The lists whose words sentences of other sources may use too.
VOCABULARY = (
    FIRST_NAMES,
    LAST_NAMES,
    CITIES,
    MONTHS,
    DAYS,
    THINGS,
    PLACES,
    ADJECTIVES,
    FOOD,
    ACTIVITIES,
    PERSONS,
    ANIMALS,
    COUNTRIES,
    LANGUAGES,
    ORDINALS,
    ONES,
    TENS,
)

R = random.Random(5)


def c(x):
    """A random choice."""
    return R.choice(x)


def num(lo, hi):
    """A random number in words."""
    return words(R.randint(lo, hi))


def words(n):
    """A number in words."""
    if n < 20:
        return ONES[n]
    if n < 100:
        return TENS[n // 10] + ("" if n % 10 == 0 else " " + ONES[n % 10])
    if n < 1000:
        return (
            ONES[n // 100]
            + " hundred"
            + ("" if n % 100 == 0 else " " + ("and " if R.random() < 0.4 else "") + words(n % 100))
        )
    if n < 10**6:
        return words(n // 1000) + " thousand" + ("" if n % 1000 == 0 else " " + words(n % 1000))
    return words(n // 10**6) + " million" + ("" if n % 10**6 == 0 else " " + words(n % 10**6))


def a(noun):
    """The noun with its indefinite article."""
    return ("an " if noun[0] in "aeio" else "a ") + noun


def year():
    """A random year in words, as it is read aloud."""
    y = R.randint(1700, 2030)
    if 2000 <= y < 2010:
        return "two thousand" + ("" if y == 2000 else " " + words(y - 2000))
    return words(y // 100) + " " + ("hundred" if y % 100 == 0 else ("oh " if y % 100 < 10 else "") + words(y % 100))


def clock():
    """A random time of day."""
    h = num(1, 12)
    return c(
        [
            f"{h} o'clock",
            f"half past {h}",
            f"a quarter to {h}",
            f"a quarter past {h}",
            f"{h} thirty",
            f"{h} fifteen",
            f"{h} forty five",
            f"{num(2, 29)} minutes past {h}",
            f"{h} in the morning",
            f"{h} in the afternoon",
        ]
    )


def digits():
    """Some random digits, read one by one."""
    return " ".join(ONES[R.randint(0, 9)] for _ in range(R.randint(3, 8)))


def spell():
    """Some random capital letters."""
    return " ".join(R.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(R.randint(2, 5)))


def noun():
    """A random thing with its article or pronoun, and sometimes an adjective."""
    return c(
        [
            a(c(THINGS)),
            a(c(ADJECTIVES) + " " + c(THINGS)),
            "the " + c(THINGS),
            "the " + c(ADJECTIVES) + " " + c(THINGS),
            "my " + c(THINGS),
            "your " + c(THINGS),
            "that " + c(THINGS),
            "this " + c(ADJECTIVES) + " " + c(THINGS),
        ]
    )


def who():
    """A random person."""
    return c(
        [
            c(PERSONS),
            c(FIRST_NAMES),
            c(FIRST_NAMES),
            c(FIRST_NAMES) + " " + c(LAST_NAMES),
            "Mister " + c(LAST_NAMES),
            "Doctor " + c(LAST_NAMES),
        ]
    )


def be3():
    """A verb for "the thing ... very big"."""
    return c(["is", "was", "will be", "looks", "seems", "might be"])


TEMPLATES = [
    lambda: f"Hello, my name is {c(FIRST_NAMES)} {c(LAST_NAMES)}.",
    lambda: f"Hello {c(FIRST_NAMES)}, how are you {c(['today', 'doing', 'this morning'])}?",
    lambda: c(FIXED),
    lambda: f"{who()} {c(VERBS_PAST)} {noun()} {c(TIMES)}.",
    lambda: f"{who()} {c(VERBS_PAST)} {noun()} in the {c(PLACES)}.",
    lambda: f"{c(SUBJECTS_PLURAL)} {c(VERBS_PAST)} {noun()}.",
    lambda: f"{c(SUBJECTS_PLURAL)} want to {c(ACTIVITIES)} {c(TIMES)}.",
    lambda: f"{c(SUBJECTS_SINGULAR)} wants to {c(ACTIVITIES)} {c(TIMES)}.",
    lambda: f"Can you {c(VERBS)} {noun()}, please?",
    lambda: f"Could you {c(ACTIVITIES)} {c(TIMES)}?",
    lambda: f"Would you like {c(['some ', ''])}{c(FOOD)} or {c(FOOD)}?",
    lambda: f"I would like {c(FOOD)} with {c(FOOD)} and {c(FOOD)}, please.",
    lambda: f"We need {c(FOOD)}, {c(FOOD)}, {c(FOOD)} and {c(FOOD)}.",
    lambda: f"The weather in {c(CITIES)} {c(['is', 'was', 'will be'])} {c(WEATHER)} and {c(WEATHER)} {c(TIMES)}.",
    lambda: f"It is {num(1, 99)} degrees in {c(CITIES)} {c(TIMES)}.",
    lambda: f"The train to {c(CITIES)} leaves at {clock()}.",
    lambda: f"The flight from {c(CITIES)} to {c(CITIES)} arrives at {clock()}.",
    lambda: f"The meeting is on {c(DAYS)}, {c(MONTHS)} {c(ORDINALS)}, at {clock()}.",
    lambda: f"{c(FIRST_NAMES)} was born on the {c(ORDINALS)} of {c(MONTHS)}, {year()}.",
    lambda: f"In {year()}, {who()} moved from {c(CITIES)} to {c(COUNTRIES)}.",
    lambda: f"It costs {num(1, 999)} dollars and {num(1, 99)} cents.",
    lambda: f"The population of {c(CITIES)} is about {num(1000, 9000000)}.",
    lambda: f"My phone number is {digits()}.",
    lambda: f"The code is {digits()}.",
    lambda: f"The answer is {num(0, 5000)}.",
    lambda: f"The letters are {spell()}.",
    lambda: f"Chapter {num(1, 60)}, page {num(1, 900)}.",
    lambda: f"{num(1, 20)} plus {num(1, 90)} is {num(1, 200)}.".capitalize(),
    lambda: f"There {c(['are', 'were'])} {num(2, 99)} {c(COUNTABLE)} in the {c(PLACES)}.",
    lambda: f"The {c(ANIMALS)} ran {c(WAYS)} the {c(ADJECTIVES)} {c(PLACES)}.",
    lambda: (
        f"The {c(ADJECTIVES)} {c(ANIMALS)} and the {c(ADJECTIVES)} {c(ANIMALS)} {c(ANIMALS_DID)} near the {c(PLACES)}."
    ),
    lambda: f"The {c(THINGS)} {be3()} {c(['very', 'quite', 'too', 'really', 'rather', 'so'])} {c(ADJECTIVES)}.",
    lambda: f"Is the {c(PLACES)} {c(['far from', 'near', 'next to', 'behind', 'opposite'])} the {c(PLACES)}?",
    lambda: f"Turn {c(['left', 'right'])} at the {c(PLACES)} and go straight for {num(2, 900)} {c(DISTANCES)}.",
    lambda: f"I think {who()} {c(VERBS_PAST)} {noun()} because it was {c(ADJECTIVES)}.",
    lambda: f"When {who()} came home, {who()} was already in the {c(PLACES)}.",
    lambda: f"If you {c(ACTIVITIES)}, I will {c(ACTIVITIES)} {c(TIMES)}.",
    lambda: f"Before we {c(ACTIVITIES)}, let's {c(ACTIVITIES)}.",
    lambda: f"Why did {who()} {c(VERBS)} {noun()}?",
    lambda: f"Where did you {c(VERBS)} {noun()}?",
    lambda: f"Do you speak {c(LANGUAGES)} or {c(LANGUAGES)}?",
    lambda: f"{who()} speaks {c(LANGUAGES)}, {c(LANGUAGES)} and a little {c(LANGUAGES)}.",
    lambda: f"{who()} has lived in {c(COUNTRIES)} for {num(2, 60)} years.",
    lambda: f"Please call {who()} at {clock()} on {c(DAYS)}.",
    lambda: f"Remind me to {c(ACTIVITIES)} on {c(DAYS)} at {clock()}.",
    lambda: f"Set {c(['an alarm', 'a timer'])} for {c([clock(), num(2, 59) + ' minutes'])}.",
    lambda: f"Turn {c(['on', 'off'])} the {c(SWITCHABLE)} in the {c(PLACES)}.",
    lambda: f"Send a message to {c(FIRST_NAMES)}, I will be {num(5, 55)} minutes late.",
    lambda: f"{who()} said that {who()} would {c(ACTIVITIES)} {c(TIMES)}.",
    lambda: f"{who()} asked whether we could {c(ACTIVITIES)}.",
    lambda: f"I have never seen such {a(c(ADJECTIVES) + ' ' + c(THINGS))} before.",
    lambda: f"We don't have enough {c(UNCOUNTABLE)} to {c(ACTIVITIES)}.",
    lambda: f"I can't {c(VERBS)} {noun()} {c(TIMES)}.",
    lambda: f"They didn't {c(VERBS)} {noun()}.",
    lambda: f"She's {c(['going to', 'not going to', 'about to', 'trying to', 'planning to'])} {c(ACTIVITIES)}.",
    lambda: f"He'll {c(ACTIVITIES)} {c(TIMES)}.",
    lambda: (
        f"You shouldn't {c(VERBS)} {noun()} without {c(['asking', 'permission', 'help', 'your coat', 'thinking'])}."
    ),
    lambda: f"Everyone in the {c(PLACES)} was {c(ADJECTIVES)} and {c(ADJECTIVES)}.",
    lambda: f"Nobody knows who {c(VERBS_PAST)} {noun()}.",
    lambda: f"The {c(ORDINALS[:20])} {c(THINGS)} on the {c(SPOTS)} is {c(ADJECTIVES)}.",
]


def sentence():
    """A random sentence, capitalised."""
    s = R.choice(TEMPLATES)()
    return s[0].upper() + s[1:]
