//! Which layer a subscriber is to get.

use flotilla_model::track::Quality;

/// Most layers of a track.
pub const LAYERS_MAX: usize = 3;

/// The best live layer up to `wanted`; the lowest live one if all are better than wanted; `None` if
/// no layer is live or nothing is wanted. `layers`: quality and liveness, lowest first.
#[must_use]
pub fn choose(layers: impl Iterator<Item = (Quality, bool)>, wanted: Quality) -> Option<usize> {
    if wanted == Quality::Off {
        return None;
    }
    let mut chosen = None;
    for (index, (quality, is_live)) in layers.enumerate() {
        if is_live && (quality <= wanted || chosen.is_none()) {
            chosen = Some(index);
        }
    }
    chosen
}

/// The lower of two qualities; `Off` is lowest.
#[must_use]
pub fn lower(a: Quality, b: Quality) -> Quality {
    if a == Quality::Off || b == Quality::Off {
        Quality::Off
    } else {
        a.min(b)
    }
}

/// The better of two qualities; `Off` is lowest.
#[must_use]
pub fn better(a: Quality, b: Quality) -> Quality {
    match (a, b) {
        (Quality::Off, other) | (other, Quality::Off) => other,
        _ => a.max(b),
    }
}

/// One step down, never off.
#[must_use]
pub fn step_down(quality: Quality) -> Quality {
    match quality {
        Quality::High => Quality::Medium,
        Quality::Off => Quality::Off,
        _ => Quality::Low,
    }
}

/// One step up.
#[must_use]
pub fn step_up(quality: Quality) -> Quality {
    match quality {
        Quality::Low => Quality::Medium,
        Quality::Off => Quality::Low,
        _ => Quality::High,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Quality::{High, Low, Medium, Off};

    #[test]
    fn the_best_live_layer_up_to_the_wanted_quality() {
        let all = [(Low, true), (Medium, true), (High, true)];
        assert_eq!(choose(all.into_iter(), High), Some(2));
        assert_eq!(choose(all.into_iter(), Medium), Some(1));
        assert_eq!(choose(all.into_iter(), Off), None);
        let gap = [(Low, true), (Medium, false), (High, true)];
        assert_eq!(choose(gap.into_iter(), Medium), Some(0));
        let only_high = [(Low, false), (Medium, false), (High, true)];
        assert_eq!(choose(only_high.into_iter(), Low), Some(2));
        assert_eq!(choose([(High, true)].into_iter(), Low), Some(0));
        assert_eq!(choose([(High, false)].into_iter(), High), None);
    }

    #[test]
    fn off_is_below_low() {
        assert_eq!(better(Off, Low), Low);
        assert_eq!(better(High, Off), High);
        assert_eq!(better(Low, Medium), Medium);
        assert_eq!(lower(Off, High), Off);
        assert_eq!(lower(Medium, High), Medium);
        assert_eq!(step_down(High), Medium);
        assert_eq!(step_down(Low), Low);
        assert_eq!(step_up(Medium), High);
    }
}
