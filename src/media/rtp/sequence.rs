//! Sequence numbers that do not wrap.
//!
//! A received stream's 16-bit numbers become 64-bit ones, so that everything behind the receiver
//! compares and subtracts without thinking of wrapping.

/// Distance from `from` to `to` on the circle of 16-bit numbers, −32,768 to 32,767.
#[must_use]
pub fn distance_16(from: u16, to: u16) -> i16 {
    to.wrapping_sub(from) as i16
}

/// Distance from `from` to `to` on the circle of 32-bit numbers.
#[must_use]
pub fn distance_32(from: u32, to: u32) -> i32 {
    to.wrapping_sub(from) as i32
}

/// The 64-bit number nearest to `reference` whose low 16 bits are `sequence`. Below 2^16 it never
/// goes under zero: numbers start with one full cycle in hand.
#[must_use]
pub fn extend_16(reference: u64, sequence: u16) -> u64 {
    let distance = distance_16(reference as u16, sequence);
    reference.saturating_add_signed(i64::from(distance))
}

/// The 64-bit number nearest to `reference` whose low 32 bits are `value`.
#[must_use]
pub fn extend_32(reference: u64, value: u32) -> u64 {
    let distance = distance_32(reference as u32, value);
    reference.saturating_add_signed(i64::from(distance))
}

/// First 64-bit number of a stream that starts at `sequence`: one cycle up, so that packets from
/// before its first one have numbers too.
#[must_use]
pub fn first_extended(sequence: u16) -> u64 {
    (1 << 16) + u64::from(sequence)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn wraps_forwards_and_backwards() {
        let start = first_extended(65_534);
        assert_eq!(extend_16(start, 65_535), start + 1);
        assert_eq!(extend_16(start, 3), start + 5);
        assert_eq!(extend_16(start + 5, 65_533), start - 1);
        assert_eq!(extend_16(first_extended(0), 65_535), 65_535);
        assert_eq!(extend_16(0, 65_535), 0);
    }

    proptest! {
        #[test]
        fn every_number_within_half_a_cycle_is_found(
            reference in 1_u64 << 16..1 << 40, distance in -32_768_i64..32_768
        ) {
            let target = reference.saturating_add_signed(distance);
            prop_assert_eq!(extend_16(reference, target as u16), target);
            prop_assert_eq!(extend_32(reference + (1 << 32), target as u32), {
                let reference = reference + (1 << 32);
                let low = target as u32;
                reference.saturating_add_signed(i64::from(distance_32(reference as u32, low)))
            });
        }
    }
}
