// Names and values as one element: fifty workers with nine facts each are fifty elements.
export default {
  template: `
    <dl class="facts">
      <div v-for="[name, value] in rows" :key="name"><dt>{{ name }}</dt><dd>{{ value }}</dd></div>
    </dl>`,
  props: { rows: Array },
};
