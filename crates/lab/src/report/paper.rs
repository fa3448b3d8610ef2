//! The published figures: Table IV of Furusawa and Nakao, "Cooperative Load Balancing of Neighboring Edge Clouds
//! with LISP".

/// Response times of one column of Table IV, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PaperTimes {
    /// Mean.
    pub mean_ms: f64,
    /// Standard deviation.
    pub deviation_ms: f64,
    /// Minimum.
    pub min_ms: f64,
    /// 25th percentile.
    pub p25_ms: f64,
    /// Median.
    pub median_ms: f64,
    /// 75th percentile.
    pub p75_ms: f64,
    /// Maximum.
    pub max_ms: f64,
}

/// Column "Proposed Method".
pub const PAPER_WITH: PaperTimes = PaperTimes {
    mean_ms: 67.2,
    deviation_ms: 63.4,
    min_ms: 55.0,
    p25_ms: 57.0,
    median_ms: 66.1,
    p75_ms: 67.2,
    max_ms: 6361.4,
};

/// Column "Without Load Balancing".
pub const PAPER_WITHOUT: PaperTimes = PaperTimes {
    mean_ms: 662.1,
    deviation_ms: 810.3,
    min_ms: 55.0,
    p25_ms: 74.9,
    median_ms: 329.2,
    p75_ms: 962.0,
    max_ms: 9385.5,
};
