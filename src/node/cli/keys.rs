//! `flotilla generate-keys`.

use super::print;

/// Letters without those that are mistaken for others.
const LETTERS: &[u8] = b"23456789abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ";

pub(super) fn run() -> anyhow::Result<()> {
    print(&format!(
        "keys:\n  API{}: {}\ncluster:\n  secret: {}\n",
        text(12),
        text(44),
        text(44),
    ));
    Ok(())
}

fn text(letters: usize) -> String {
    (0..letters)
        .map(|_| char::from(LETTERS[rand::random_range(0..LETTERS.len())]))
        .collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn keys_are_long_and_new_each_time() {
        let (one, two) = (super::text(44), super::text(44));
        assert_eq!(one.len(), 44);
        assert_ne!(one, two);
    }
}
