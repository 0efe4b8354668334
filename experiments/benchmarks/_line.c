/* Many runs of gradient descent on the mean squared error of a line, 16 in the lanes of vectors. */

#define LANES 16

/* losses, slopes and offsets are [runs / LANES][steps][LANES]; x [points], with y; runs a multiple. */
void line(int runs, int steps, int points, const float *restrict rates, const float *restrict x,
          const float *restrict y, float *restrict losses, float *restrict slopes,
          float *restrict offsets) {
  for (int first = 0; first < runs; first += LANES) {
    float slope[LANES], offset[LANES];
    for (int k = 0; k < LANES; k++) slope[k] = -1.0f, offset[k] = 1.0f;
    for (int step = 0; step < steps; step++) {
      float loss[LANES] = {0}, by_slope[LANES] = {0}, by_offset[LANES] = {0};
      for (int i = 0; i < points; i++)
        for (int k = 0; k < LANES; k++) {
          const float error = slope[k] * x[i] + offset[k] - y[i];
          loss[k] += error * error;
          by_slope[k] += error * x[i];
          by_offset[k] += error;
        }
      const long row = ((long)first * steps) + (long)step * LANES;
      for (int k = 0; k < LANES; k++) {
        losses[row + k] = loss[k] / points;
        slopes[row + k] = slope[k];
        offsets[row + k] = offset[k];
        slope[k] -= rates[first + k] * 2.0f / points * by_slope[k];
        offset[k] -= rates[first + k] * 2.0f / points * by_offset[k];
      }
    }
  }
}
