//! A run in which little happened proves little: it is refused, not passed.

use super::Opinion;

/// What a run must have seen at least.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Need {
    /// In words: "acknowledged writes during faults".
    pub(crate) what: String,
    pub(crate) least: u64,
    pub(crate) seen: u64,
}

/// Names whatever was too little; a run with anything here is undecided.
pub(crate) fn judge(needs: &[Need]) -> Opinion {
    let mut opinion = Opinion::new("coverage");
    let told: Vec<String> = needs
        .iter()
        .map(|need| format!("{} {}", need.seen, need.what))
        .collect();
    opinion.looked_at = told.join(", ");
    for need in needs.iter().filter(|need| need.seen < need.least) {
        opinion.undecided.push(format!(
            "only {} {}, {} are needed",
            need.seen, need.what, need.least
        ));
    }
    opinion
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vacuous_run_is_refused() {
        let need = |seen| Need {
            what: "writes".to_owned(),
            least: 10,
            seen,
        };
        assert!(judge(&[need(10)]).undecided.is_empty());
        assert_eq!(judge(&[need(9), need(0), need(11)]).undecided.len(), 2);
    }
}
