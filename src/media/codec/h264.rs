//! Key frames in H.264 payloads (RFC 6184 §5): IDR slices and the parameter sets before them, in
//! single NAL units, STAP-A aggregates and FU-A fragments.

use crate::codec::Inspection;

const IDR: u8 = 5;
const SEQUENCE_PARAMETERS: u8 = 7;
const STAP_A: u8 = 24;
const FU_A: u8 = 28;

/// Looks at a payload. A packet with sequence parameters is taken for the start of its frame: a
/// decoder can start there.
#[must_use]
pub fn inspect(payload: &[u8]) -> Inspection {
    let Some(&first) = payload.first() else {
        return Inspection::default();
    };
    let mut found = Inspection::default();
    match first & 0x1f {
        STAP_A => {
            let mut rest = &payload[1..];
            while let Some((len, after)) = rest.split_first_chunk::<2>() {
                let len = usize::from(u16::from_be_bytes(*len));
                let Some((unit, after)) = after.split_at_checked(len) else {
                    break;
                };
                if let Some(&head) = unit.first() {
                    note(&mut found, head & 0x1f);
                }
                rest = after;
            }
        }
        FU_A => {
            if let Some(&header) = payload.get(1) {
                note(&mut found, header & 0x1f);
                // Only the first fragment can be where a frame starts.
                found.is_frame_start &= header & 0x80 != 0;
            }
        }
        kind => note(&mut found, kind),
    }
    found
}

fn note(found: &mut Inspection, kind: u8) {
    match kind {
        SEQUENCE_PARAMETERS => {
            found.is_key_frame = true;
            found.is_frame_start = true;
        }
        IDR => found.is_key_frame = true,
        _ => (),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key_and_start(payload: &[u8]) -> (bool, bool) {
        let found = inspect(payload);
        (found.is_key_frame, found.is_frame_start)
    }

    #[test]
    fn single_units() {
        assert_eq!(key_and_start(&[0x67, 1]), (true, true));
        assert_eq!(key_and_start(&[0x65, 1]), (true, false));
        assert_eq!(key_and_start(&[0x41, 1]), (false, false));
        assert_eq!(key_and_start(&[0x68, 1]), (false, false));
        assert_eq!(key_and_start(&[]), (false, false));
    }

    #[test]
    fn aggregates() {
        assert_eq!(
            key_and_start(&[0x78, 0, 2, 0x67, 1, 0, 2, 0x68, 1]),
            (true, true)
        );
        assert_eq!(key_and_start(&[0x78, 0, 2, 0x65, 1]), (true, false));
        assert_eq!(
            key_and_start(&[0x78, 0, 2, 0x41, 1, 0, 9, 0x67]),
            (false, false)
        );
        assert_eq!(key_and_start(&[0x78, 0, 0, 0, 1, 0x67]), (true, true));
    }

    #[test]
    fn fragments() {
        assert_eq!(key_and_start(&[0x7c, 0x85, 1]), (true, false));
        assert_eq!(key_and_start(&[0x7c, 0x05, 1]), (true, false));
        assert_eq!(key_and_start(&[0x7c, 0x87, 1]), (true, true));
        assert_eq!(key_and_start(&[0x7c, 0x81, 1]), (false, false));
        assert_eq!(key_and_start(&[0x7c]), (false, false));
    }
}
