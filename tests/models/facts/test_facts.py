"""What holds for the whole knowledge base: sizes, spelling, uniqueness, and agreement between its tables."""

import re
import subprocess
import sys
from collections import Counter, defaultdict
from functools import cache
from typing import cast

import opencc
import pytest

import posttrain.models.facts as package
from posttrain.models.facts import Name, by_relation, facts, name_of, read

CJK = re.compile(r"[一-鿿㐀-䶿\U00020000-\U0002ffff]")
CODES = {"iso_code", "mountain_height", "element_symbol", "element_number"}
SIZES = {
    "capital": 185, "continent": 190, "currency": 185, "language": 150, "iso_code": 195, "neighbours": 140,
    "city_country": 180, "mountain_country": 90, "mountain_height": 30, "river_continent": 70, "river_country": 40,
    "taiwan_place": 100, "superlative": 80, "element_symbol": 118, "element_number": 118, "invention_inventor": 70,
    "work_author": 170, "work_artist": 50, "work_composer": 50, "person_country": 120,
}  # fmt: skip

# The periodic table in order, written a second time.
SYMBOLS = (
    "HHeLiBeBCNOFNeNaMgAlSiPSClArKCaScTiVCrMnFeCoNiCuZnGaGeAsSeBrKrRbSrYZrNbMoTcRuRhPdAgCdInSnSbTeIXeCsBaLaCePrNdPmSmEuGd"
    "TbDyHoErTmYbLuHfTaWReOsIrPtAuHgTlPbBiPoAtRnFrRaAcThPaUNpPuAmCmBkCfEsFmMdNoLrRfDbSgBhHsMtDsRgCnNhFlMcLvTsOg"
)


@cache
def entities() -> dict[str, tuple[Name, ...]]:
    """The names of each kind of thing; cities include the capitals."""
    tables = {
        "country": ("countries",),
        "city": ("cities",),
        "mountain": ("mountains",),
        "river": ("rivers",),
        "element": ("elements",),
        "person": ("persons",),
        "work": ("books", "arts"),
        "invention": ("inventions",),
        "language": ("languages",),
        "currency": ("currencies",),
        "continent": ("continents",),
    }
    found = {kind: [name_of(row) for table in names for row in read(table)] for kind, names in tables.items()}
    capitals = [name_of(row, "capital_") for row in read("countries") if row["capital_zh"]]
    found["city"] = capitals + found["city"]
    return {kind: tuple(names) for kind, names in found.items()}


def names() -> set[Name]:
    stated = {
        name for fact in facts() if fact.relation not in CODES for name in (fact.subject, fact.object, *fact.also)
    }
    return stated | {name for group in entities().values() for name in group}


def test_relations_and_sizes() -> None:
    assert package.__all__ == ["Fact", "Name", "by_relation", "facts"]
    assert set(by_relation()) == set(SIZES)
    assert {relation: len(group) for relation, group in by_relation().items() if len(group) < SIZES[relation]} == {}
    assert len(facts()) >= 2200
    assert facts() is facts()


def test_one_fact_for_a_relation_and_a_subject() -> None:
    for column in (0, 1):
        counted = Counter((fact.relation, fact.subject[column].casefold()) for fact in facts())
        assert [key for key, times in counted.items() if times > 1] == []


def test_objects_are_distinct() -> None:
    assert [fact for fact in facts() if len({fact.object, *fact.also}) != 1 + len(fact.also)] == []


@pytest.mark.parametrize("kind", list(entities()))
def test_names_are_unique_within_a_kind(kind: str) -> None:
    for column in (0, 1):
        counted = Counter(name[column].casefold() for name in entities()[kind])
        assert [name for name, times in counted.items() if times > 1] == []


def test_one_chinese_name_for_an_english_one_and_back() -> None:
    for here, there in ((0, 1), (1, 0)):
        found = defaultdict(set)
        for name in names():
            found[name[here]].add(name[there])
        assert {name: others for name, others in found.items() if len(others) > 1} == {}


def test_chinese_is_written_as_in_taiwan() -> None:
    # Character by character; the exceptions are traditional too in a name (里 a mile, 后 a queen, 干 in transliterations,
    # 余 范 岳 surnames, 采 in Nietzsche, 斗 a ladle, 虫 as Tezuka wrote himself, 裏 in the Caspian Sea).
    traditional_too = set("里余后干范采岳斗虫裏")
    to_taiwan = opencc.OpenCC("s2tw")
    characters = {character for name in names() for character in name.zh} - traditional_too
    assert {character for character in characters if cast(str, to_taiwan.convert(character)) != character} == set()
    assert [name for name in names() if not CJK.search(name.zh) or name.zh != name.zh.strip() or "台" in name.zh] == []


def test_english_is_ascii() -> None:
    for name in names():
        assert name.en.isascii(), name
        assert name.en == name.en.strip()
        assert re.search("[A-Za-z]", name.en), name


def test_codes_are_the_same_in_both_languages() -> None:
    for relation in CODES:
        assert [fact for fact in by_relation()[relation] if fact.object.zh != fact.object.en] == []


def test_elements_come_in_order() -> None:
    symbols = re.findall("[A-Z][a-z]?", SYMBOLS)
    assert [fact.object.en for fact in by_relation()["element_symbol"]] == symbols
    assert [fact.object.en for fact in by_relation()["element_number"]] == [str(n) for n in range(1, 119)]
    # Every character is a radical of its state: gas, stone, metal, or one of the two liquids; old metals stand alone.
    chinese = [name.zh for name in entities()["element"]]
    assert len(chinese) == len(set(chinese)) == 118
    taiwanese = {"Si": "矽", "Tc": "鎝", "At": "砈", "Fr": "鍅", "Np": "錼", "Pu": "鈽", "Am": "鋂", "Lu": "鎦"}
    assert {symbol: chinese[symbols.index(symbol)] for symbol in taiwanese} == taiwanese


def test_superlatives_agree_with_the_other_tables() -> None:
    known = {kind: set(entities()[kind]) for kind in ("country", "city", "element", "continent")}
    for fact in by_relation()["superlative"]:
        assert fact.kind
        if fact.kind in known:
            assert fact.object in known[fact.kind], fact
        for area in by_relation()["continent"]:
            if fact.subject.zh.startswith(area.subject.zh):  # "日本最高的山" goes with "... in Japan"
                assert re.search(rf"\bin (the )?{area.subject.en}$", fact.subject.en), fact


def test_a_countrys_superlative_lies_in_that_country() -> None:
    lies_in = {
        fact.subject: {fact.object, *fact.also}
        for relation in ("mountain_country", "river_country", "city_country")
        for fact in by_relation()[relation]
    } | {fact.object: {fact.subject} for fact in by_relation()["capital"]}
    checked = 0
    for fact in by_relation()["superlative"]:
        for country in entities()["country"]:
            if fact.subject.zh.startswith(country.zh) and fact.object in lies_in:
                assert country in lies_in[fact.object], fact
                checked += 1
    assert checked > 50


def test_rivers_of_a_country_flow_in_its_continent() -> None:
    continent = {fact.subject: {fact.object, *fact.also} for fact in by_relation()["continent"]}
    river = {fact.subject: fact.object for fact in by_relation()["river_continent"]}
    assert [f for f in by_relation()["river_country"] if river[f.subject] not in continent[f.object]] == []


def test_heights_fall_in_the_order_that_is_taught() -> None:
    height = {fact.subject.en: int(fact.object.en) for fact in by_relation()["mountain_height"]}
    order = ["Mount Everest", "K2", "Kangchenjunga", "Lhotse", "Dhaulagiri", "Manaslu", "Nanga Parbat", "Annapurna"]
    order += ["Denali", "Mount Kilimanjaro", "Mount Elbrus", "Puncak Jaya", "Mount Kinabalu", "Yushan", "Xueshan"]
    assert sorted(order, key=lambda name: -height[name]) == order
    assert all(1000 < metres <= 8849 for metres in height.values())


def test_taiwanese_places_lie_in_its_22_counties_and_cities() -> None:
    counties = {fact.object for fact in by_relation()["taiwan_place"]}
    assert len(counties) == 22
    assert all(name.zh[-1] in "縣市" and name.en.endswith(("County", "City")) for name in counties)


def test_every_person_is_used_and_every_author_known() -> None:
    people = set(entities()["person"])
    made = ("work_author", "work_artist", "work_composer", "invention_inventor")
    credited = {name for relation in made for fact in by_relation()[relation] for name in (fact.object, *fact.also)}
    placed = {fact.subject for fact in by_relation()["person_country"]}
    assert credited <= people
    assert people - credited - placed == set()


def test_some_facts_by_hand() -> None:
    known = {(fact.relation, fact.subject.en): fact for fact in facts()}
    assert known["capital", "Taiwan"].object == Name("臺北", "Taipei")
    assert known["superlative", "the highest mountain in Taiwan"].object == Name("玉山", "Yushan")
    assert known["taiwan_place", "Sun Moon Lake"].object == Name("南投縣", "Nantou County")
    assert known["invention_inventor", "insulin"].also == (Name("貝斯特", "Charles Best"),)
    assert known["language", "Switzerland"].also[0] == Name("法文", "French")
    assert known["work_author", "Hamlet"].object == Name("莎士比亞", "William Shakespeare")


def test_a_ragged_line_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("tables")
    (folder / "ragged.tsv").write_text("zh\ten\n巴黎\n", encoding="utf-8")
    monkeypatch.setattr("posttrain.models.facts.__file__", str(folder / "tables.py"))
    with pytest.raises(ValueError, match=r"ragged\.tsv:2: 1 cells, but the header has 2"):
        read("ragged")


def test_import_is_light() -> None:
    code = (
        "import sys, time; start = time.process_time(); from posttrain.models.facts import facts; facts();"
        "print(time.process_time() - start, 'torch' in sys.modules or 'babel' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, heavy = done.stdout.split()
    assert heavy == "False"
    assert float(seconds) < 0.3
