//! One number out of the answer to an instant query (`/api/v1/query`).

use std::time::Duration;

use balance::Measurement;
use serde::Deserialize;
use serde_json::Value;

/// A number and when Prometheus computed it, by its own clock.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sample {
    /// Time of evaluation since the Unix epoch. Not the time of the sample: see [`super::promql`].
    pub(super) evaluated_at: Duration,
    /// The number, NaN and infinities included.
    pub(super) value: f64,
}

#[derive(Deserialize)]
struct Answer {
    status: String,
    data: Option<Data>,
    error: Option<String>,
    #[serde(default)]
    warnings: Vec<String>,
}

#[derive(Deserialize)]
struct Data {
    #[serde(rename = "resultType")]
    result_type: String,
    result: Value,
}

#[derive(Deserialize)]
struct Series {
    /// Absent for a native histogram, which is no number.
    value: Option<Point>,
}

#[derive(Deserialize)]
struct Point(f64, String);

/// The one number of an answer.
///
/// # Errors
/// The [`Measurement`] that the answer is instead.
pub(super) fn sample(body: &[u8]) -> Result<Sample, Measurement> {
    let answer: Answer = serde_json::from_slice(body).map_err(|e| malformed(e.to_string()))?;
    if answer.status != "success" {
        let error = answer.error.unwrap_or_default();
        return Err(malformed(format!("status `{}`: {error}", answer.status)));
    }
    if let Some(warning) = answer.warnings.into_iter().next() {
        return Err(Measurement::Incomplete { warning });
    }
    let data = answer.data.ok_or_else(|| malformed("no `data`"))?;
    match data.result_type.as_str() {
        "scalar" => parse::<Point>(data.result)?.sample(),
        "vector" => match <[Series; 1]>::try_from(parse::<Vec<Series>>(data.result)?) {
            Ok([Series { value: Some(point) }]) => point.sample(),
            Ok([Series { value: None }]) => Err(malformed("the series is a histogram, not a number")),
            Err(series) if series.is_empty() => Err(Measurement::Empty),
            Err(series) => Err(Measurement::SeveralSeries { count: series.len() }),
        },
        "matrix" => Err(malformed("the query selects a range; a rate() over it is missing")),
        other => Err(malformed(format!("result type `{other:.40}` is no number"))),
    }
}

fn parse<T: serde::de::DeserializeOwned>(result: Value) -> Result<T, Measurement> {
    serde_json::from_value(result).map_err(|e| malformed(e.to_string()))
}

/// Puts a number and the timestamp of what it was computed from together.
///
/// The age is the difference of two times by one clock, Prometheus's, so that it holds whatever the
/// clock here says.
pub(super) fn judge(value: Sample, timestamp: Sample, max_age: Duration) -> Measurement {
    match Duration::try_from_secs_f64(timestamp.value) {
        Ok(at) => Measurement::judge_at(value.value, at, timestamp.evaluated_at, max_age),
        Err(_) => malformed(format!("timestamp() is {}", timestamp.value)),
    }
}

impl Point {
    fn sample(self) -> Result<Sample, Measurement> {
        let value = self.1.parse().map_err(|_| malformed(format!("`{:.40}` is not a number", self.1)))?;
        let evaluated_at = Duration::try_from_secs_f64(self.0)
            .map_err(|_| malformed(format!("evaluation time {} is no time", self.0)))?;
        Ok(Sample { evaluated_at, value })
    }
}

fn malformed(what: impl Into<String>) -> Measurement {
    Measurement::Malformed { what: what.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use balance::MeasurementKind;
    use proptest::prelude::*;

    fn kind(body: &str) -> MeasurementKind {
        sample(body.as_bytes()).unwrap_err().kind()
    }

    #[test]
    fn one_number_from_a_vector_or_a_scalar() {
        let vector = br#"{"status":"success","data":{"resultType":"vector","result":[
            {"metric":{"eid":"10.100.0.1/32"},"value":[1795350596.17,"412.5"]}]}}"#;
        assert_eq!(sample(vector).unwrap().value, 412.5);
        let scalar = br#"{"status":"success","data":{"resultType":"scalar","result":[1795350596.25,"2"]}}"#;
        let two = Sample { evaluated_at: Duration::from_millis(1_795_350_596_250), value: 2.0 };
        assert_eq!(sample(scalar), Ok(two));
    }

    #[test]
    fn not_numbers_are_numbers_to_prometheus() {
        for text in ["NaN", "+Inf", "-Inf"] {
            let body =
                format!(r#"{{"status":"success","data":{{"resultType":"scalar","result":[1,"{text}"]}}}}"#);
            let value = sample(body.as_bytes()).unwrap();
            let judged = judge(value, Sample { value: 1.0, ..value }, Duration::from_secs(5));
            assert_eq!(judged, Measurement::NotANumber, "{text}");
        }
    }

    #[test]
    fn answers_that_are_no_number() {
        let data = |data: &str| format!(r#"{{"status":"success","data":{data}}}"#);
        assert_eq!(kind(&data(r#"{"resultType":"vector","result":[]}"#)), MeasurementKind::Empty);
        let two = r#"{"resultType":"vector","result":[{"metric":{},"value":[1,"1"]},{"metric":{},"value":[1,"2"]}]}"#;
        let several = sample(data(two).as_bytes()).unwrap_err();
        assert_eq!(several, Measurement::SeveralSeries { count: 2 });
        let malformed = [
            data(r#"{"resultType":"matrix","result":[]}"#),
            data(r#"{"resultType":"string","result":[1,"x"]}"#),
            data(r#"{"resultType":"vector","result":[{"metric":{},"histogram":[1,{}]}]}"#),
            data(r#"{"resultType":"vector","result":[{"metric":{},"value":[1,"many"]}]}"#),
            data(r#"{"resultType":"vector","result":[{"metric":{},"value":[-1,"1"]}]}"#),
            data(r#"{"resultType":"vector","result":{}}"#),
            data("null"),
            r#"{"status":"error","errorType":"bad_data","error":"parse error"}"#.into(),
            "<html>".into(),
            String::new(),
        ];
        for body in malformed {
            assert_eq!(kind(&body), MeasurementKind::Malformed, "{body}");
        }
    }

    #[test]
    fn a_warning_makes_a_number_incomplete() {
        let body = r#"{"status":"success","warnings":["one store did not answer"],
            "data":{"resultType":"scalar","result":[1,"5"]}}"#;
        assert_eq!(kind(body), MeasurementKind::Incomplete);
    }

    #[test]
    fn the_age_is_by_the_clock_of_prometheus() {
        let value = Sample { evaluated_at: Duration::from_secs(1000), value: 7.0 };
        let stamp = |value| Sample { evaluated_at: Duration::from_secs(1000), value };
        let max_age = Duration::from_secs(5);
        let fresh = judge(value, stamp(998.5), max_age);
        assert!(matches!(fresh, Measurement::Fresh { age, .. } if age == Duration::from_millis(1500)));
        assert_eq!(judge(value, stamp(994.0), max_age).kind(), MeasurementKind::Stale);
        assert_eq!(judge(value, stamp(f64::NAN), max_age).kind(), MeasurementKind::Malformed);
    }

    proptest! {
        #[test]
        fn any_body_is_answered(body in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(sample(&body).is_err());
        }
    }
}
