//! Two measurements of one benchmark: is the later one worse, and where?

use std::{collections::BTreeMap, fmt::Write as _};

use super::profile::Profile;

/// More than this part worse fails.
const TOLERANCE: f64 = 0.03;
/// A rise of allocations below this, in calls a request, is of the background.
const FEW: f64 = 0.1;
/// Functions named.
const NAMED: usize = 8;

/// What is worse in `after`, in words with the functions that grew most; nothing when all is well.
pub fn worse(benchmark: &str, before: &Profile, after: &Profile) -> Option<String> {
    let mut text = String::new();
    let hottest = &after.hottest;
    for (unit, before, after, least) in [
        ("instructions", &before.instructions, &after.instructions, 0.0),
        ("allocations", &before.allocations, &after.allocations, FEW),
    ] {
        let (old, new): (f64, f64) = (before.values().sum(), after.values().sum());
        if new > old * (1.0 + TOLERANCE) && new - old >= least {
            // Writing to a String does not fail.
            let _ = writeln!(text, "{benchmark}: {unit} a request {old:.2} → {new:.2}; grown most:");
            for (name, grown) in grown(before, after) {
                let line = hottest.get(&name).map_or_else(String::new, |line| format!(":{line}"));
                let _ = writeln!(text, "  {grown:+10.2}  {name}{line}");
            }
        }
    }
    (!text.is_empty()).then_some(text)
}

fn grown(before: &BTreeMap<String, f64>, after: &BTreeMap<String, f64>) -> Vec<(String, f64)> {
    let mut all: Vec<(String, f64)> =
        after.iter().map(|(name, new)| (name.clone(), new - before.get(name).unwrap_or(&0.0))).collect();
    all.retain(|(_, grown)| *grown >= 0.01);
    all.sort_by(|a, b| b.1.total_cmp(&a.1));
    all.truncate(NAMED);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(instructions: &[(&str, f64)], allocations: f64) -> Profile {
        let instructions = instructions.iter().map(|(name, cost)| ((*name).to_owned(), *cost)).collect();
        Profile {
            instructions,
            hottest: BTreeMap::from([("route".to_owned(), 75)]),
            allocations: BTreeMap::from([("make".to_owned(), allocations)]),
        }
    }

    #[test]
    fn a_slower_function_is_named() {
        let before = profile(&[("route", 1000.0), ("write", 9000.0)], 20.0);
        let after = profile(&[("route", 1400.0), ("write", 8990.0)], 20.0);
        let text = worse("http1", &before, &after).expect("3.9 % worse");
        assert!(text.contains("http1: instructions") && text.contains("route:75") && !text.contains("write"), "{text}");
        assert_eq!(worse("http1", &after, &before), None, "better is well");
        assert_eq!(worse("http1", &before, &profile(&[("route", 1290.0), ("write", 9000.0)], 20.0)), None, "2.9 %");
    }

    #[test]
    fn allocations_count_likewise() {
        let before = profile(&[("route", 1000.0)], 20.0);
        assert_eq!(worse("tcp", &before, &profile(&[("route", 1000.0)], 20.5)), None, "2.5 %");
        let text = worse("tcp", &before, &profile(&[("route", 1000.0)], 21.0)).expect("5 % worse");
        assert!(text.contains("allocations") && text.contains("make") && !text.contains("instructions"), "{text}");
        let few = profile(&[("route", 1000.0)], 0.01);
        assert_eq!(worse("tcp", &few, &profile(&[("route", 1000.0)], 0.05)), None, "background");
    }
}
