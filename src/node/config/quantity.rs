//! Sizes and durations as people write them: `"1GiB"`, `"50ms"`. A bare number is refused, since its unit would be a guess.

/// Bytes of `"4KiB"`, `"256MiB"`, `"1GiB"`, `"2TiB"` or `"4096B"`. The error says what is accepted.
pub fn parse_size(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 5] =
        [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40), ("B", 1)];
    parse(text, &UNITS).ok_or_else(|| {
        format!("\"{text}\" is not a size; write a whole number and B, KiB, MiB, GiB or TiB, like \"1GiB\"")
    })
}

/// Nanoseconds of `"50us"`, `"5ms"`, `"30s"`, `"2min"`, `"1h"` or `"1d"`. The error says what is accepted.
pub fn parse_duration(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 7] = [
        ("ns", 1),
        ("us", 1_000),
        ("ms", 1_000_000),
        ("s", 1_000_000_000),
        ("min", 60_000_000_000),
        ("h", 3_600_000_000_000),
        ("d", 86_400_000_000_000),
    ];
    parse(text, &UNITS).ok_or_else(|| {
        format!(
            "\"{text}\" is not a duration; write a whole number and us, ms, s, min, h or d, like \"50ms\""
        )
    })
}

fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

/// Bytes with the largest unit that divides them, as `parse_size` reads it.
pub fn show_size(bytes: u64) -> String {
    let (unit, factor) = [("TiB", 1u64 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)]
        .into_iter()
        .find(|(_, factor)| bytes >= *factor && bytes.is_multiple_of(*factor))
        .unwrap_or(("B", 1));
    format!("{}{unit}", bytes / factor)
}

/// Nanoseconds with the largest unit that divides them, as `parse_duration` reads it.
pub fn show_duration(nanos: u64) -> String {
    let (unit, factor) = [("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1_000)]
        .into_iter()
        .find(|(_, factor)| nanos >= *factor && nanos.is_multiple_of(*factor))
        .unwrap_or(("ns", 1));
    format!("{}{unit}", nanos / factor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_whole_numbers_with_a_unit_are_read() {
        assert_eq!(parse_size("1GiB"), Ok(1 << 30));
        assert_eq!(parse_size("512 KiB"), Ok(512 << 10));
        assert_eq!(parse_duration("2min"), Ok(120_000_000_000));
        assert_eq!(parse_duration("50us"), Ok(50_000));
        assert_eq!(parse_duration("2d"), Ok(48 * 3_600_000_000_000));
        for bad in
            ["", "1", "GiB", "1.5GiB", "-1GiB", "1GB", "1gib", "99999999999999TiB", "1GiB ", "1 G iB", "٣GiB"]
        {
            assert!(parse_size(bad).is_err(), "{bad:?} was read as a size");
        }
        for bad in ["", "5", "ms", "5m", "1e3ms", "99999999999999999min"] {
            assert!(parse_duration(bad).is_err(), "{bad:?} was read as a duration");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(value in any::<u64>()) {
            prop_assert_eq!(parse_size(&show_size(value)), Ok(value));
            prop_assert_eq!(parse_duration(&show_duration(value)), Ok(value));
        }

        #[test]
        fn no_text_panics(text in ".*") {
            let _ = (parse_size(&text), parse_duration(&text));
        }
    }
}
