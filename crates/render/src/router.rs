//! A page about a router: how true its predictions are, and what its strong calls buy.

use std::fmt::Write;

use crate::report::{document, html_table, section};
use crate::svg::{calibration, certified_curve, escape};

/// Predictions for one model beside what came of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Calibration {
    /// Model id.
    pub model: String,
    /// (mean prediction, mean score, queries) per bin.
    pub bins: Vec<(f64, f64, usize)>,
}

/// What the page shows.
#[derive(Debug, Clone, PartialEq)]
pub struct RouterPage {
    /// Queries judged by.
    pub queries: usize,
    /// Per model.
    pub calibration: Vec<Calibration>,
    /// Share of strong calls and quality; empty if there is no pair of models.
    pub curve: Vec<(f64, f64)>,
    /// A certified policy: its share of strong calls, and its quality with the lower bound first.
    pub certified: Option<(f64, (f64, f64))>,
    /// Rows of APGR, CPT50 and CPT80.
    pub rankings: Vec<(String, [f64; 3])>,
}

impl RouterPage {
    /// The page; it needs nothing from elsewhere.
    pub fn html(&self) -> String {
        let mut body =
            format!("<h1>Router</h1><p>Judged by {} queries it was not trained on.</p>", self.queries);
        if !self.curve.is_empty() {
            let rows = self.rankings.iter().map(|(name, [apgr, cpt50, cpt80])| {
                let percent = |share: &f64| format!("{:.1} %", share * 100.0);
                vec![name.clone(), format!("{apgr:.3}"), percent(cpt50), percent(cpt80)]
            });
            let table = html_table("Share of the gap recovered", &["", "APGR", "CPT50", "CPT80"], rows);
            let picture = certified_curve(&self.curve, self.certified);
            section(&mut body, "What strong calls buy", &format!("{picture}{table}"));
        }
        let pictures = self.calibration.iter().fold(String::new(), |mut out, model| {
            let _ = write!(out, "<h3>{}</h3>{}", escape(&model.model), calibration(&model.bins));
            out
        });
        section(&mut body, "How true the predictions are", &pictures);
        document("boute: router", &body, "")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_and_the_band_is_drawn() {
        let page = RouterPage {
            queries: 10,
            calibration: vec![Calibration { model: "<b>".into(), bins: vec![(0.2, 0.3, 4), (0.8, 0.7, 6)] }],
            curve: vec![(0.0, 0.5), (0.5, 0.68), (1.0, 0.7)],
            certified: Some((0.5, (0.64, 0.68))),
            rankings: vec![("this router".into(), [0.7, 0.25, 0.5])],
        };
        let html = page.html();
        assert!(html.contains("<h3>&lt;b&gt;</h3>") && html.contains("certified") && html.contains("0.700"));
    }
}
