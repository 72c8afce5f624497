//! The one thing that this crate reads in a data message: the number that LiveKit's clients give
//! their reliable ones (`livekit.DataPacket.sequence`). It tells the continuation of an association
//! which messages another node has passed on.

/// Field of the number.
const SEQUENCE: u64 = 16;
/// Fields looked at: a packet has a dozen, and one for each destination.
const FIELDS_MAX: usize = 1024;

/// The number of a message that is here as a whole; `None` if it has none or is no message.
pub(super) fn sequence(mut message: &[u8]) -> Option<u32> {
    let mut found = None;
    for _ in 0..FIELDS_MAX {
        if message.is_empty() {
            return found.filter(|number| *number != 0);
        }
        let tag = varint(&mut message)?;
        let skipped = match tag & 7 {
            0 => {
                let value = varint(&mut message)?;
                if tag >> 3 == SEQUENCE {
                    found = u32::try_from(value).ok();
                }
                0
            }
            1 => 8,
            2 => usize::try_from(varint(&mut message)?).ok()?,
            5 => 4,
            _ => return None,
        };
        message = message.get(skipped..)?;
    }
    None
}

/// Protobuf's variable-length number.
fn varint(from: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = from.split_first()?;
        *from = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_found_among_other_fields() {
        // Kind, an identity, a user packet of three bytes, the number 300, a fixed field.
        let packet = [
            8, 1, 0x22, 2, b'a', b'b', 0x12, 3, 1, 2, 3, 0x80, 1, 0xac, 2, 0x0d, 0, 0, 0, 0,
        ];
        assert_eq!(sequence(&packet), Some(300));
        for cut in [1, 3, 7, 12, 13, 17] {
            assert_eq!(sequence(&packet[..cut]), None, "{cut}");
        }
        assert_eq!(sequence(&packet[..11]), None, "no number");
        assert_eq!(sequence(&[0x80, 1, 0]), None, "0 is none");
        assert_eq!(sequence(&[0xff; 20]), None);
        assert_eq!(sequence(&[]), None);
    }
}
