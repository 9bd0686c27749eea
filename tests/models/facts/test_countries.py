"""Countries against sources that did not make the table: a second list by hand, and the babel that is installed."""

import csv
import re
import unicodedata
from pathlib import Path

import babel
import pytest
from babel.numbers import get_territory_currencies

import posttrain.models.facts as package
from posttrain.models.facts import by_relation

# A second list, by ISO 3166 code, written without looking at countries.tsv.
CONTINENTS = {
    "Africa": "DZ AO BJ BW BF BI CM CV CF TD KM CD CG CI DJ EG GQ ER SZ ET GA GM GH GN GW KE LS LR LY MG MW ML MR MU MA "
    "MZ NA NE NG RW ST SN SC SL SO ZA SS SD TZ TG TN UG ZM ZW",
    "Asia": "AF AM AZ BH BD BT BN KH CN GE IN ID IR IQ IL JP JO KZ KP KR KW KG LA LB MY MV MN MM NP OM PK PH QA SA SG LK "
    "SY TW TJ TH TL TR TM AE UZ VN YE",
    "Europe": "AL AD AT BY BE BA BG HR CY CZ DK EE FI FR DE GR HU IS IE IT LV LI LT LU MT MD MC ME NL MK NO PL PT RO RU SM "
    "RS SK SI ES SE CH UA GB VA",
    "North America": "AG BS BB BZ CA CR CU DM DO SV GD GT HT HN JM MX NI PA KN LC VC TT US",
    "South America": "AR BO BR CL CO EC GY PY PE SR UY VE",
    "Oceania": "AU FJ KI MH FM NR NZ PW PG WS SB TO TV VU",
}

CAPITALS = """
AD Andorra la Vella; AE Abu Dhabi; AF Kabul; AG St. John's; AL Tirana; AM Yerevan; AO Luanda; AR Buenos Aires; AT Vienna;
AU Canberra; AZ Baku; BA Sarajevo; BB Bridgetown; BD Dhaka; BE Brussels; BF Ouagadougou; BG Sofia; BH Manama;
BJ Porto-Novo; BN Bandar Seri Begawan; BR Brasília; BS Nassau; BT Thimphu; BW Gaborone; BY Minsk; BZ Belmopan; CA Ottawa;
CD Kinshasa; CF Bangui; CG Brazzaville; CH Bern; CI Yamoussoukro; CL Santiago; CM Yaoundé; CN Beijing; CO Bogotá;
CR San José; CU Havana; CV Praia; CY Nicosia; CZ Prague; DE Berlin; DJ Djibouti City; DK Copenhagen; DM Roseau;
DO Santo Domingo; DZ Algiers; EC Quito; EE Tallinn; EG Cairo; ER Asmara; ES Madrid; ET Addis Ababa; FI Helsinki; FJ Suva;
FM Palikir; FR Paris; GA Libreville; GB London; GD St. George's; GE Tbilisi; GH Accra; GM Banjul; GN Conakry; GR Athens;
GT Guatemala City; GW Bissau; GY Georgetown; HN Tegucigalpa; HR Zagreb; HT Port-au-Prince; HU Budapest; ID Jakarta;
IE Dublin; IN New Delhi; IQ Baghdad; IR Tehran; IS Reykjavík; IT Rome; JM Kingston; JO Amman; JP Tokyo; KE Nairobi;
KG Bishkek; KH Phnom Penh; KI Tarawa; KM Moroni; KN Basseterre; KP Pyongyang; KR Seoul; KW Kuwait City; KZ Astana;
LA Vientiane; LB Beirut; LC Castries; LI Vaduz; LR Monrovia; LS Maseru; LT Vilnius; LU Luxembourg City; LV Riga;
LY Tripoli; MA Rabat; MC Monaco; MD Chişinău; ME Podgorica; MG Antananarivo; MH Majuro; MK Skopje; ML Bamako;
MM Naypyidaw; MN Ulaanbaatar; MR Nouakchott; MT Valletta; MU Port Louis; MV Malé; MW Lilongwe; MX Mexico City;
MY Kuala Lumpur; MZ Maputo; NA Windhoek; NE Niamey; NG Abuja; NI Managua; NL Amsterdam; NO Oslo; NP Kathmandu;
NZ Wellington; OM Muscat; PA Panama City; PE Lima; PG Port Moresby; PH Manila; PK Islamabad; PL Warsaw; PT Lisbon;
PW Ngerulmud; PY Asunción; QA Doha; RO Bucharest; RS Belgrade; RU Moscow; RW Kigali; SA Riyadh; SB Honiara; SC Victoria;
SD Khartoum; SE Stockholm; SG Singapore; SI Ljubljana; SK Bratislava; SL Freetown; SM San Marino City; SN Dakar;
SO Mogadishu; SR Paramaribo; SS Juba; ST São Tomé; SV San Salvador; SY Damascus; TD N'Djamena; TG Lomé; TH Bangkok;
TJ Dushanbe; TL Dili; TM Ashgabat; TN Tunis; TO Nukuʻalofa; TR Ankara; TT Port of Spain; TV Funafuti; TW Taipei;
TZ Dodoma; UA Kyiv; UG Kampala; US Washington, D.C.; UY Montevideo; UZ Tashkent; VA Vatican City; VC Kingstown;
VE Caracas; VN Hanoi; VU Port Vila; WS Apia; YE Sanaa; ZM Lusaka; ZW Harare
"""

# Several seats of government, a disputed or a moving one: no capital is taught without a footnote.
NO_CAPITAL = {"ZA", "BO", "NR", "IL", "LK", "SZ", "BI", "GQ"}

# CLDR's form reads awkwardly, is not what Taiwan says, or names a country as it was called before: ours instead.
RENAMED_COUNTRIES_ZH = {"TW": "臺灣", "CD": "剛果民主共和國", "CG": "剛果共和國"}
RENAMED_COUNTRIES_EN = {
    "CD": "Democratic Republic of the Congo",
    "CG": "Republic of the Congo",
    "CI": "Ivory Coast",
    "CZ": "Czech Republic",
    "MM": "Myanmar",
    "TL": "East Timor",
    "TR": "Turkey",
    "VC": "Saint Vincent and the Grenadines",
}
RENAMED_CURRENCIES_ZH = {
    "AED": "阿聯迪拉姆",
    "BAM": "波士尼亞可轉換馬克",
    "ERN": "厄利垂亞納克法",  # CLDR transliterates the country differently from its own territory name; so do
    "GYD": "蓋亞那元",
    "HNL": "宏都拉斯倫皮拉",
    "KES": "肯亞先令",
    "KMF": "葛摩法郎",
    "MDL": "摩爾多瓦列伊",
    "MWK": "馬拉威克瓦查",
    "WST": "薩摩亞塔拉",  # ... these
    "MMK": "緬元",
    "NIO": "尼加拉瓜科多巴",
    "PEN": "秘魯索爾",
    "RSD": "塞爾維亞第納爾",
    "STN": "聖多美多布拉",
    "SZL": "史瓦帝尼里蘭吉尼",
    "TWD": "新臺幣",
    "XAF": "中非法郎",
    "XCD": "東加勒比元",  # CLDR names it after one of its eight users
    "XOF": "西非法郎",
    "ZAR": "南非幣",
}
RENAMED_CURRENCIES_EN = {
    "AED": "UAE dirham",
    "BAM": "Bosnian convertible mark",
    "BOB": "boliviano",
    "BWP": "Botswana pula",
    "GYD": "Guyanese dollar",
    "KGS": "Kyrgyz som",
    "KZT": "Kazakh tenge",
    "STN": "Sao Tome dobra",
    "TJS": "Tajik somoni",
    "TMT": "Turkmen manat",
    "UZS": "Uzbek som",
}
RENAMED_LANGUAGES_ZH = {"ber": "柏柏文", "cnr": "蒙特內哥羅文", "lo": "寮國文", "ny": "齊切瓦文"}
RENAMED_LANGUAGES_EN = {
    "ber": "Berber",
    "bn": "Bengali",
    "cnr": "Montenegrin",
    "dv": "Dhivehi",
    "ny": "Chichewa",
    "st": "Sotho",
}
# Bulgaria changed to the euro in 2026; Zimbabwe uses several currencies, and Bhutan, Haiti, Lesotho, Namibia and Panama
# a second one (the table puts their own first).
CURRENCY_LEFT_OUT = {"BG", "ZW"}
TWO_CURRENCIES = {"BT", "HT", "LS", "NA", "PA"}


def table(name: str) -> list[dict[str, str]]:
    path = Path(package.__file__).with_name(f"{name}.tsv")
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE))


def plain(text: str) -> str:
    ascii_only = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z]", "", re.sub(r"\bst\. ", "saint ", ascii_only.replace("&", "and")))


ROWS = {row["code"]: row for row in table("countries")}


def test_continents_agree_with_the_second_list() -> None:
    second = {code: name for name, codes in CONTINENTS.items() for code in codes.split()}
    names = {row["code"]: row["en"] for row in table("continents")}
    allowed = {code: [names[key] for key in row["continents"].split()] for code, row in ROWS.items()}
    assert [code for code in second if second[code] not in allowed[code]] == []
    assert {code for code, continents in allowed.items() if len(continents) > 1} == {
        "AM", "AZ", "CY", "EG", "GE", "KZ", "RU", "TR",
    }  # fmt: skip
    assert set(ROWS) == set(second)


def test_capitals_agree_with_the_second_list() -> None:
    second = dict(entry.strip().split(" ", 1) for entry in CAPITALS.replace("\n", " ").split(";"))
    ours = {code: row["capital_en"] for code, row in ROWS.items() if row["capital_en"]}
    assert set(ROWS) - set(ours) == NO_CAPITAL
    assert set(second) == set(ours)
    assert {code: name for code, name in ours.items() if plain(name) != plain(second[code])} == {}


def test_borders_are_symmetric() -> None:
    borders = {code: row["borders"].split() for code, row in ROWS.items()}
    assert [(a, b) for a in borders for b in borders[a] if a not in borders[b]] == []
    assert [code for code, others in borders.items() if code in others or len(set(others)) < len(others)] == []


@pytest.mark.parametrize(
    ("code", "count"), [("CN", 14), ("RU", 14), ("BR", 10), ("DE", 9), ("CD", 9), ("FR", 10), ("AT", 8), ("TZ", 8)]
)
def test_well_known_numbers_of_neighbours(code: str, count: int) -> None:
    # France: eight in Europe and, through French Guiana, Brazil and Suriname.
    assert len(ROWS[code]["borders"].split()) == count


def test_unsettled_borders_are_no_subjects() -> None:
    subjects = {fact.subject.en for fact in by_relation()["neighbours"]}
    assert subjects.isdisjoint({"Israel", "Serbia", "Morocco", "Cyprus", "Taiwan", "Japan"})


@pytest.mark.parametrize(
    ("locale", "column", "name", "attribute", "renamed"),
    [
        ("zh_Hant_TW", "zh", "countries", "territories", RENAMED_COUNTRIES_ZH),
        ("en", "en", "countries", "territories", RENAMED_COUNTRIES_EN),
        ("zh_Hant_TW", "zh", "currencies", "currencies", RENAMED_CURRENCIES_ZH),
        ("en", "en", "currencies", "currencies", RENAMED_CURRENCIES_EN),
        ("zh_Hant_TW", "zh", "languages", "languages", RENAMED_LANGUAGES_ZH),
        ("en", "en", "languages", "languages", RENAMED_LANGUAGES_EN),
    ],
)
def test_names_are_those_of_cldr_or_renamed_on_purpose(
    locale: str, column: str, name: str, attribute: str, renamed: dict[str, str]
) -> None:
    parsed = babel.Locale.parse(locale)
    cldr = {"territories": parsed.territories, "currencies": parsed.currencies, "languages": parsed.languages}[
        attribute
    ]
    same = plain if column == "en" else str
    rows = table(name)
    assert {row["code"]: row[column] for row in rows if row["code"] in renamed} == renamed
    others = [row for row in rows if row["code"] not in renamed]
    assert [(row[column], cldr[row["code"]]) for row in others if same(row[column]) != same(cldr[row["code"]])] == []


def test_currencies_are_those_of_cldr() -> None:
    assert {code for code, row in ROWS.items() if not row["currencies"]} == CURRENCY_LEFT_OUT
    for code, row in ROWS.items():
        if code in CURRENCY_LEFT_OUT:
            continue
        expected = get_territory_currencies(code)
        if code in TWO_CURRENCIES:
            assert set(row["currencies"].split()) <= set(expected)
        else:
            assert row["currencies"].split() == expected
