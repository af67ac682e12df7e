"""Build china_divisions.csv: China's provinces > cities > districts, in pinyin.

The paths of the toy tasks (Hunan/Shaoyang/Wugang) come from this table. Two pinned inputs, both public:

    npm pack china-division@2.7.0        # -> china-division-2.7.0.tgz, the names and codes of 2023-06-30
    pip install pypinyin==0.55.0         # characters -> pinyin
    python data/build_china_divisions.py china-division-2.7.0.tgz

The output is a function of the two inputs: same inputs, same bytes. The rules (README.md beside this file has the reasons):
  kept      the 22 provinces and 5 autonomous regions; their prefecture-level cities; of these the units named
            district, county or city that are not autonomous
  dropped   municipalities; prefectures, leagues, autonomous prefectures, directly administered units; autonomous counties,
            banners, island groups; statistical zones (codes ..70-..79: development, industrial, management zones)
  spelling  suffix stripped if two characters remain, toneless, one word, u-umlaut written v; full name if siblings collide
"""

import argparse
import base64
import csv
import hashlib
import io
import os
import re
import sys
import tarfile
from collections import Counter
from pathlib import Path

import pypinyin

# npm's own hash of the .tgz (`npm view china-division@2.7.0 dist.integrity`).
INTEGRITY = "sha512-4uUPAT+1WfqDh5jytq7omdCmHNk3j+k76zEG/2IqaGcYB90c2SwcixttcypdsZ3T/9tN1TTpBDoeZn+Yw/qBEA=="
PYPINYIN = "0.55.0"

PROVINCE = re.compile(r"(.+?)(?:省|(?:壮族|回族|维吾尔)?自治区)")  # municipalities end in 市: no match
CITY = re.compile(r"(.+)市")
# The shortest stem of two characters or more: 沈北新区 -> 沈北, 清新区 -> 清新; 单县 has none and stays whole.
DISTRICT = re.compile(r"(.{2,}?)(?:(?:矿|新|特|回族|达斡尔族)?区|县|市)")

# In place names these characters nearly always have this reading; pypinyin's first choices are dou and zhang.
USUAL_READING = {"都": "dū", "长": "cháng"}
# Readings that pypinyin gets wrong, in the order of the official codes, and the double a that tells Shaanxi from Shanxi.
OVERRIDES = {
    "陕西": "Shaanxi", "大城": "Daicheng", "泊头": "Botou", "万柏林": "Wanbailin", "繁峙": "Fanshi", "洪洞": "Hongtong",
    "霍林郭勒": "Huolinguole", "朝阳": "Chaoyang", "穆棱": "Muling", "六合": "Luhe", "蚌山": "Bengshan",
    "涡阳": "Guoyang", "马尾": "Mawei", "乐陵": "Laoling", "单县": "Shanxian", "浚县": "Xunxian", "南乐": "Nanle",
    "漯河": "Luohe", "召陵": "Shaoling", "曾都": "Zengdu", "佛冈": "Fogang", "龙圩": "Longxu", "覃塘": "Qintang",
    "什邡": "Shifang", "荥经": "Yingjing", "筠连": "Junlian", "浪卡子": "Langkazi", "佛坪": "Foping",
    "民乐": "Minle", "宕昌": "Tanchang", "崆峒": "Kongtong", "红寺堡": "Hongsibu",
}


def read_tables(tgz: Path) -> tuple[dict, dict, list]:
    """The package's three tables, after its hash is checked: {code: province}, {code: city}, [district row]."""
    data = tgz.read_bytes()
    if "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode() != INTEGRITY:
        sys.exit(f"{tgz}: not china-division 2.7.0 (hash differs)")
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        def rows(name):
            return list(csv.DictReader(io.TextIOWrapper(tar.extractfile(f"package/dist/{name}.csv"), "utf-8")))

        provinces, cities = ({r["code"]: r["name"] for r in rows(name)} for name in ("provinces", "cities"))
        return provinces, cities, rows("areas")


def spell(name: str) -> str:
    """Toneless pinyin as one word, first letter capital."""
    return OVERRIDES.get(name) or "".join(pypinyin.lazy_pinyin(name)).capitalize()


def stem(pattern: re.Pattern, name: str) -> str:
    match = pattern.fullmatch(name)
    return match[1] if match else name


def is_kept(row: dict, provinces: dict, cities: dict) -> bool:
    return bool(
        PROVINCE.fullmatch(provinces[row["provinceCode"]])
        and CITY.fullmatch(cities[row["cityCode"]])
        and row["name"][-1] in "区县市"
        and "自治" not in row["name"]
        and row["code"][4] != "7"
    )


def build(provinces: dict, cities: dict, areas: list) -> list[tuple[str, str, str, str]]:
    """Rows (province, city, district, code), sorted by code; no two rows have the same path."""
    kept = sorted((r for r in areas if is_kept(r, provinces, cities)), key=lambda r: r["code"])
    rows = []
    for r in kept:
        province, city = provinces[r["provinceCode"]], cities[r["cityCode"]]
        rows.append((spell(stem(PROVINCE, province)), spell(stem(CITY, city)), spell(stem(DISTRICT, r["name"])), r["code"]))
    count = Counter(row[:3] for row in rows)
    # Siblings that would be spelled alike keep their suffix: Yunfu/Yunanqu and Yunfu/Yunanxian.
    rows = [row if count[row[:3]] == 1 else (*row[:2], spell(r["name"]), row[3]) for row, r in zip(rows, kept)]
    assert len({row[:3] for row in rows}) == len(rows), "two rows with the same path"
    assert all(re.fullmatch("[A-Z][a-z]+", name) for row in rows for name in row[:3])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tgz", type=Path, help="china-division-2.7.0.tgz, from: npm pack china-division@2.7.0")
    default = Path(__file__).with_name("china_divisions.csv")
    parser.add_argument("--out", type=Path, default=default, help="default: china_divisions.csv beside this script")
    args = parser.parse_args()
    if pypinyin.__version__ != PYPINYIN:
        sys.exit(f"pypinyin {PYPINYIN} is needed, this is {pypinyin.__version__}")
    pypinyin.load_single_dict({ord(character): reading for character, reading in USUAL_READING.items()})

    rows = build(*read_tables(args.tgz))
    partial = args.out.with_name(args.out.name + ".partial")
    with partial.open("w", encoding="utf-8", newline="") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(("province", "city", "district", "code"))
        writer.writerows(rows)
    os.replace(partial, args.out)
    print(f"{args.out}: {len({r[0] for r in rows})} provinces, {len({r[:2] for r in rows})} cities, {len(rows)} districts")


if __name__ == "__main__":
    main()
